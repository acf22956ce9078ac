"""Sizes of a windowed transformer."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class WindowedConfig:
    """width: of the layers. window: positions a query sees, itself among them.

    gated: RMS norms and SwiGLU (Qwen3-TTS's decoder), else layer norms and GELU (Mimi). outside: width of what goes in
    and out through projections, with a norm before the last; 0 for none of these.
    one_by_one: on torch, queries attend one after the other: on a processor no bit then depends on the chunking.
    """

    width: int
    layers: int
    heads: int
    head_dim: int
    inner: int
    window: int
    theta: float = 10_000.0
    eps: float = 1e-5
    gated: bool = False
    outside: int = 0
    one_by_one: bool = False
