"""Attention of queries over keys and values on torch: as one kernel, or with its pattern shown under a tap."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from izwi_lab.families.shared.taps import tap


def attend(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, mask: torch.Tensor | None, scale: float) -> torch.Tensor:
    """Queries [B, H, T, d] on k and v [B, Hkv, S, d] -> [B, T, H * d]. mask: see `Piece.keys_values`."""
    B, H, T, d = q.shape
    if T == 1:  # every query head of a key head as a row: no copies of keys
        rows = q.view(B, k.shape[1], -1, d)
        return F.scaled_dot_product_attention(rows, k, v, attn_mask=mask, scale=scale).reshape(B, 1, -1)
    y = F.scaled_dot_product_attention(
        q, k, v, attn_mask=mask, is_causal=mask is None, scale=scale, enable_gqa=k.shape[1] != H
    )
    return y.transpose(1, 2).flatten(2)


def shown(
    name: str, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, mask: torch.Tensor | None, scale: float
) -> torch.Tensor:
    """As attend, with the probabilities [B, H, T, S] under a tap. S: from the first key that the first query sees."""
    group, T = q.shape[1] // k.shape[1], q.shape[2]
    k, v = k.repeat_interleave(group, dim=1), v.repeat_interleave(group, dim=1)
    scores = (q @ k.transpose(2, 3)).float() * scale
    if mask is None and T > 1:
        mask = torch.ones(T, T, dtype=torch.bool, device=q.device).tril()
    if mask is not None:
        scores = scores.masked_fill(~mask, float("-inf"))
    pattern = tap(name, scores.softmax(dim=-1).to(q.dtype))
    return (pattern @ v).transpose(1, 2).flatten(2)
