"""What a decoder language model can be: sizes and the few switches in which published families differ."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from izwi_lab.errors import CheckpointError

FULL, SLIDING, CONV = "full_attention", "sliding_attention", "conv"
BUCKET = 128  # positions; caches grow to whole buckets
# Far above every published model: a config.json that says more is damaged or hostile, and is refused before lists of
# that length are made.
MOST = {
    "vocab_size": 1 << 24,
    "hidden_size": 1 << 20,
    "intermediate_size": 1 << 22,
    "num_layers": 1024,
    "num_heads": 1 << 14,
    "num_kv_heads": 1 << 14,
    "head_dim": 1 << 14,
    "max_positions": 1 << 30,
}
CONV_RING = 64  # positions whose inputs a conv layer keeps: more than it needs, so that a session can be rewound


@dataclass(frozen=True, slots=True)
class Rope:
    """Rotary positions (arXiv:2104.09864), half-split. inv_freq: [head_dim / 2]; cos and sin are times `gain`."""

    inv_freq: tuple[float, ...]
    gain: float = 1.0


@dataclass(frozen=True, slots=True)
class DecoderConfig:
    """A pre-norm decoder with grouped-query attention, or a short convolution, and a gated MLP.

    layer_types: FULL, SLIDING or CONV by layer. ropes: by type of attention layer. norm_offset: added to every norm
    scale (Gemma stores w - 1). post_norms: the branch outputs are normed before the residual addition (Gemma).
    embed_scale multiplies embeddings. window: keys that a sliding layer sees, counting the current one. activation:
    "silu" or "gelu_tanh". conv_kernel: inputs that a conv layer sees, counting the current one (LFM2's conv_L_cache);
    conv_bias: its three parts have biases.
    """

    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    max_positions: int
    ropes: tuple[tuple[str, Rope], ...]
    layer_types: tuple[str, ...] = ()
    window: int = 0
    norm_eps: float = 1e-5
    norm_offset: float = 0.0
    qk_norm: bool = False
    post_norms: bool = False
    attention_bias: bool = False
    mlp_bias: bool = False
    tied: bool = True
    activation: str = "silu"
    embed_scale: float = 1.0
    attn_scale: float = 0.0
    conv_kernel: int = 0
    conv_bias: bool = False

    def __post_init__(self) -> None:
        for name, most in MOST.items():
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= most:
                raise CheckpointError(
                    f"The config says {str(value)[:60]} for {name}.", hint=f"Expected a whole number from 1 to {most}."
                )
        if self.num_heads % self.num_kv_heads or self.head_dim % 2:
            raise CheckpointError(
                f"The config has {self.num_heads} heads, {self.num_kv_heads} key heads and head_dim {self.head_dim}.",
                hint="Key heads must divide heads and head_dim must be even.",
            )
        if self.activation not in ("silu", "gelu_tanh"):
            raise CheckpointError(f"Unknown activation {self.activation!r}.", hint="Expected silu or gelu_tanh.")
        if not self.layer_types:
            object.__setattr__(self, "layer_types", (FULL,) * self.num_layers)
        if not self.attn_scale:
            object.__setattr__(self, "attn_scale", self.head_dim**-0.5)
        if len(self.layer_types) != self.num_layers:
            raise CheckpointError(f"The config lists {len(self.layer_types)} layer types for {self.num_layers} layers.")
        ropes = [kind for kind, _ in self.ropes]
        if unknown := set(self.layer_types) - {CONV, *ropes}:
            raise CheckpointError(
                f"The config has layers of the types {sorted(unknown)[:5]}.", hint=f"It has ropes for {ropes}."
            )
        if SLIDING in self.layer_types and self.window < 1:
            raise CheckpointError("The config has sliding layers but no sliding window.")
        if CONV in self.layer_types and not 1 <= self.conv_kernel <= CONV_RING:
            raise CheckpointError(f"conv layers with a kernel of {self.conv_kernel}, expected 1 to {CONV_RING}.")

    def window_of(self, layer: int) -> int:
        """Keys that layer sees; 0 for all."""
        return self.window if self.layer_types[layer] == SLIDING else 0

    def ring_of(self, layer: int) -> int:
        """Most positions that the cache of a layer holds; position p is at slot p % ring. 0: it keeps everything."""
        if self.layer_types[layer] == CONV:
            return CONV_RING
        return -(-(self.window + BUCKET) // BUCKET) * BUCKET if self.layer_types[layer] == SLIDING else 0

    def rewindable(self, length: int, position: int) -> bool:
        """True if caches of `length` positions can go back to `position`: what it still sees was not overwritten."""
        if position == 0 or position == length:
            return True
        if not 0 < position < length:
            return False
        for layer, kind in enumerate(self.layer_types):
            if ring := self.ring_of(layer):
                seen = self.conv_kernel if kind == CONV else self.window
                if max(0, position + 1 - seen) < length - ring:
                    return False
        return True


def rope(head_dim: int, theta: float, scaling: Mapping[str, Any] | None = None) -> Rope:
    """Rotary frequencies; scaling as in `rope_scaling` or `rope_parameters` of config.json.

    Kinds: default, linear (positions divided by factor), llama3 (Llama 3.1: low frequencies divided, a smooth middle).

    Raises:
        CheckpointError: another kind, or a width or base that no rope has.
    """
    if not 2 <= head_dim <= MOST["head_dim"] or not 0 < theta < math.inf:
        raise CheckpointError(
            f"The config has a rope of {head_dim} dimensions to the base {theta}.",
            hint=f"Expected 2 to {MOST['head_dim']} dimensions and a positive base.",
        )
    base = [theta ** (-i / head_dim) for i in range(0, head_dim, 2)]
    scaling = scaling or {}
    kind = scaling.get("rope_type") or scaling.get("type") or "default"
    if kind == "default":
        return Rope(tuple(base))
    if kind == "linear":
        return Rope(tuple(f / float(scaling["factor"]) for f in base))
    if kind == "llama3":
        return Rope(tuple(_llama3(f, scaling) for f in base))
    raise CheckpointError(f"Unknown rope scaling {kind!r}.", hint="Supported: default, linear, llama3.")


def _llama3(frequency: float, scaling: Mapping[str, Any]) -> float:
    factor, old = float(scaling["factor"]), float(scaling["original_max_position_embeddings"])
    low, high = float(scaling["low_freq_factor"]), float(scaling["high_freq_factor"])
    wavelength = 2 * math.pi / frequency
    if wavelength < old / high:
        return frequency
    if wavelength > old / low:
        return frequency / factor
    smooth = (old / wavelength - low) / (high - low)
    return (1 - smooth) * frequency / factor + smooth * frequency
