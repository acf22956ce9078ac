"""Random quantised weights for `load_format="dummy"` of a variant whose checkpoint is quantised, in its own form."""

from __future__ import annotations

import zlib
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from izwi_lab.artifacts.tensors import AffineTensor
from izwi_lab.backends.loading import random_weight
from izwi_lab.families.shared.nets.decoder.config import CONV, DecoderConfig
from izwi_lab.families.shared.weights import Weight


class DummyWeights(Mapping[str, Weight]):
    """A net's weights by name, made anew each time they are asked for, the same for the same name and seed.

    Matrices are affine-quantised as mlx-lm quantises a checkpoint (every Linear and Embedding whose rows are whole
    groups), and have the spread of `random_weight`. shapes: by name. dense: a part of the names of matrices that stay
    dense.
    """

    def __init__(
        self,
        shapes: Mapping[str, tuple[int, ...]],
        *,
        bits: int,
        group_size: int,
        seed: int = 0,
        dense: tuple[str, ...] = (),
    ) -> None:
        self._shapes, self._dense = shapes, dense
        self._bits, self._group_size, self._seed = bits, group_size, seed

    @property
    def quantised(self) -> tuple[str, ...]:
        """Names of the weights that come as AffineTensor."""
        whole = (n for n, s in self._shapes.items() if len(s) == 2 and s[1] % self._group_size == 0)
        return tuple(n for n in whole if not any(part in n for part in self._dense))

    def __getitem__(self, name: str) -> Weight:
        shape = self._shapes[name]
        if name in self.quantised:
            return self._affine(name, shape[0], shape[1])
        return random_weight(name, shape, self._seed)

    def __iter__(self) -> Iterator[str]:
        return iter(self._shapes)

    def __len__(self) -> int:
        return len(self._shapes)

    def _affine(self, name: str, rows: int, cols: int) -> AffineTensor:
        rng = np.random.Generator(np.random.Philox(key=[self._seed, zlib.crc32(name.encode())]))
        codes = rng.integers(0, 2**32, (rows, cols * self._bits // 32), dtype=np.uint32)
        levels = 2**self._bits
        spread = np.sqrt((levels**2 - 1) / 12)  # standard deviation of uniform codes
        scale = np.full((rows, cols // self._group_size), 1 / (spread * np.sqrt(cols)), np.float16)
        bias = (scale.astype(np.float32) * (-(levels - 1) / 2)).astype(np.float16)
        return AffineTensor(codes, scale, bias, self._bits, self._group_size)


def dummy_weights(config: DecoderConfig, table: Mapping[str, Any] | None) -> DummyWeights | None:
    """Table: `quantization` of config.json; None where there is none, and the backend makes dense weights."""
    return DummyWeights(shapes(config), bits=table["bits"], group_size=table["group_size"]) if table else None


def shapes(c: DecoderConfig) -> dict[str, tuple[int, ...]]:
    """Names and shapes of the decoder's weights."""
    out: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (c.vocab_size, c.hidden_size)}
    for i, kind in enumerate(c.layer_types):
        part = _conv(c) if kind == CONV else _attention(c)
        part.update(_rest(c))
        out.update({f"model.layers.{i}.{name}": shape for name, shape in part.items()})
    out["model.norm.weight"] = (c.hidden_size,)
    if not c.tied:
        out["lm_head.weight"] = (c.vocab_size, c.hidden_size)
    return out


def _linear(name: str, rows: int, cols: int, bias: bool) -> dict[str, tuple[int, ...]]:
    return {f"{name}.weight": (rows, cols), **({f"{name}.bias": (rows,)} if bias else {})}


def _attention(c: DecoderConfig) -> dict[str, tuple[int, ...]]:
    q, kv = c.num_heads * c.head_dim, c.num_kv_heads * c.head_dim
    rows = {"q_proj": q, "k_proj": kv, "v_proj": kv}
    out: dict[str, tuple[int, ...]] = {}
    for name, size in rows.items():
        out |= _linear(f"self_attn.{name}", size, c.hidden_size, c.attention_bias)
    out |= _linear("self_attn.o_proj", c.hidden_size, q, c.attention_bias)
    if c.qk_norm:
        out |= {"self_attn.q_norm.weight": (c.head_dim,), "self_attn.k_norm.weight": (c.head_dim,)}
    return out


def _conv(c: DecoderConfig) -> dict[str, tuple[int, ...]]:
    out = _linear("conv.in_proj", 3 * c.hidden_size, c.hidden_size, c.conv_bias)
    out |= _linear("conv.out_proj", c.hidden_size, c.hidden_size, c.conv_bias)
    out["conv.conv.weight"] = (c.hidden_size, 1, c.conv_kernel)
    return out | ({"conv.conv.bias": (c.hidden_size,)} if c.conv_bias else {})


def _rest(c: DecoderConfig) -> dict[str, tuple[int, ...]]:
    out: dict[str, tuple[int, ...]] = {}
    for name in ("gate_proj", "up_proj"):
        out |= _linear(f"mlp.{name}", c.intermediate_size, c.hidden_size, c.mlp_bias)
    out |= _linear("mlp.down_proj", c.hidden_size, c.intermediate_size, c.mlp_bias)
    norms = ["input_layernorm", "post_attention_layernorm"]
    norms += ["pre_feedforward_layernorm", "post_feedforward_layernorm"] if c.post_norms else []
    return out | {f"{n}.weight": (c.hidden_size,) for n in norms}
