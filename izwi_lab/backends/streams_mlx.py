"""Streams of MLX's processor build: one operation runs on one thread, so large ones are shared out among streams."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from functools import cache
from itertools import pairwise

import mlx.core as mx

from izwi_lab.backends import host

_SHARE_WORK = 1 << 18  # the least for a stream of its own: 90 us of multiplications


@cache
def spare() -> tuple[mx.ThreadLocalStream, ...]:
    """Streams beside the one in use: as many as there are more threads to use than one."""
    return tuple(mx.new_thread_local_stream(mx.cpu) for _ in range(host.threads() - 1))


def share_rows(f: Callable[[mx.array], mx.array], x: mx.array, work: int) -> mx.array:
    """What f makes of x [B, T, ...] row by row [B, 1, ...], on the processor: rows shared out among streams.

    work: multiplications in all, or what takes as long as one.
    """
    size = x.shape[1]
    count = min(size, shares(work, _SHARE_WORK))
    if count == 1:
        return f(x)
    parts = []
    for stream, (a, b) in zip((None, *spare()), pairwise(size * i // count for i in range(count + 1)), strict=False):
        with mx.stream(stream) if stream else nullcontext():
            parts.append(f(x[:, a:b]))
    return mx.concatenate(parts, axis=1)


def product(x: mx.array, w: mx.array) -> mx.array:
    """X [B, T, n] @ w [n, m] on the processor, in float32 and rounded to the dtype of x."""
    wide = w.astype(mx.float32)
    work = x.shape[0] * x.shape[1] * w.size
    return share_rows(lambda rows: wide_product(rows, wide), x, work).astype(x.dtype)


def wide_product(x: mx.array, w: mx.array, stream: mx.ThreadLocalStream | None = None) -> mx.array:
    """X [..., n] @ w [n, m] on the processor, float32.

    bfloat16 is expanded for each product and then multiplied twice as fast as by MLX's own kernel, which adds up in
    float32 too.
    """
    wide = (part.astype(mx.float32, stream=stream) for part in (x, w))
    return mx.matmul(*wide, stream=stream)


def by_columns(w: mx.array) -> mx.array:
    """The same weights [outs, ...], stored with the outputs last, in the order of x @ w.T.

    In float32 that is twice as fast: MLX's BLAS is the reference one, which is better at adding rows up than at dots.
    """
    stored = mx.contiguous(mx.moveaxis(w, 0, -1))
    mx.eval(stored)
    return mx.moveaxis(stored, -1, 0)


def shares(size: int, least: int) -> int:
    """Into how many parts work of this size is cut, so that none is smaller than `least`; 1 where it is not."""
    return max(1, min(host.threads(), size // least))
