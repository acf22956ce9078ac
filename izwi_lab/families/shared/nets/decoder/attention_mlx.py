"""Attention of queries over keys and values on MLX: as one kernel, or with its pattern shown under a tap."""

from __future__ import annotations

import mlx.core as mx

from izwi_lab.families.shared.taps import tap


def attend(q: mx.array, k: mx.array, v: mx.array, mask: mx.array | str | None, scale: float) -> mx.array:
    """Queries [B, H, T, d] on k and v [B, Hkv, S, d] -> [B, T, H * d]. mask: see `Piece.keys_values`."""
    y = mx.fast.scaled_dot_product_attention(q, k, v, scale=scale, mask=mask)
    return y.swapaxes(1, 2).flatten(2)


def shown(name: str, q: mx.array, k: mx.array, v: mx.array, mask: mx.array | str | None, scale: float) -> mx.array:
    """As attend, with the probabilities [B, H, T, S] under a tap. S: from the first key that the first query sees."""
    group, T, S = q.shape[1] // k.shape[1], q.shape[2], k.shape[2]
    k, v = mx.repeat(k, group, axis=1), mx.repeat(v, group, axis=1)
    scores = (q @ k.swapaxes(2, 3)).astype(mx.float32) * scale
    if isinstance(mask, str):
        mask = mx.arange(S) <= mx.arange(S - T, S)[:, None]
    if mask is not None:
        scores = mx.where(mask, scores, -mx.inf)
    pattern = tap(name, mx.softmax(scores, axis=-1).astype(q.dtype))
    y: mx.array = pattern @ v
    return y.swapaxes(1, 2).flatten(2)
