"""Dense matrices on MLX's processor build, where a product runs on one thread: shared out among streams, one a core."""

from __future__ import annotations

from itertools import pairwise

import mlx.core as mx

from izwi_lab.backends.streams_mlx import shares, spare, wide_product

_SHARE_VALUES = 1 << 18  # the smallest part of a matrix for a stream of its own: 90 us of work for one token

Part = tuple[mx.ThreadLocalStream | None, slice, mx.array]  # the inputs it reads, and their rows [ins, outs]


class Parts:
    """Views of a matrix [outs, ins] stored by columns, a part for each stream, the first for the one in use.

    Each part reads some of the inputs, and what they give is added up in float32.
    """

    def __init__(self, w: mx.array):
        count = shares(w.size, _SHARE_VALUES)
        edges = [w.shape[1] * i // count for i in range(count + 1)]
        cuts = [slice(*edge) for edge in pairwise(edges)]
        self._parts: list[Part] = [
            (stream, cut, w[:, cut].T) for stream, cut in zip((None, *spare()), cuts, strict=False)
        ]
        mx.eval([w for _, _, w in self._parts])  # no array may wait for the thread that loads

    def product(self, x: mx.array) -> mx.array:
        """X [..., ins] -> [..., outs]."""
        y = [wide_product(x[..., cut], w, stream) for stream, cut, w in self._parts]
        return sum(y[1:], start=y[0]).astype(x.dtype)
