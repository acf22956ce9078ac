"""The compiled decode step (`backends/native/decoder.cpp`) for a torch decoder on the CPU, through ctypes."""

from __future__ import annotations

import ctypes
from typing import Any

import torch

from izwi_lab.families.shared.nets.quant import native_torch as affine

_DENSE_BITS = {torch.float32: 32, torch.bfloat16: 16}


class _Layer(ctypes.Structure):
    """`struct Layer` of decoder.cpp."""

    _fields_ = (
        *((n, affine.Matrix) for n in ("q", "k", "v", "o", "gate", "up", "down")),
        *((n, ctypes.c_void_p) for n in ("pre_attn", "post_attn", "pre_mlp", "post_mlp", "q_norm", "k_norm")),
        ("inv_freq", ctypes.c_void_p),
        ("rope_gain", ctypes.c_float),
        ("window", ctypes.c_int32),
    )


class _Model(ctypes.Structure):
    """`struct Model` of decoder.cpp."""

    _fields_ = (
        *((n, ctypes.c_int32) for n in ("layers", "hidden", "inter", "heads", "kv_heads", "head_dim")),
        ("gelu", ctypes.c_int32),
        ("cache_bf16", ctypes.c_int32),
        *((n, ctypes.c_float) for n in ("eps", "attn_scale", "embed_scale", "unused")),
        ("embed", affine.Matrix),
        ("head", affine.Matrix),
        ("layer", ctypes.POINTER(_Layer)),
        ("norm", ctypes.c_void_p),
    )


class NativeStep:
    """One token through all layers in one call. Holds the tensors that the descriptors point into."""

    def __init__(self, net: Any, dtype: torch.dtype) -> None:
        self.config = net.config
        self._kept: list[torch.Tensor] = []
        self._library: ctypes.CDLL | None = None
        self._dtype = dtype
        self._model = self._describe(net)
        self._caches: Any = ctypes.c_void_p * net.config.num_layers

    def ready(self) -> bool:
        """True once the library is compiled."""
        if self._library is None:
            library = affine.library()
            if library is None:
                return False
            for name, cls in (("layer", _Layer), ("model", _Model)):
                size = getattr(library, f"izwi_sizeof_{name}")
                size.restype = ctypes.c_long
                if size() != ctypes.sizeof(cls):
                    raise RuntimeError(f"decoder.cpp and its Python declarations disagree on struct {name}")
            library.izwi_decode.restype = None
            self._library = library
        return True

    def run(self, token: int, state: dict[str, Any]) -> tuple[torch.Tensor, torch.Tensor]:
        """Token id -> logits [1, V], hidden [1, D], both float32; the state grows by one."""
        assert self._library is not None
        c, keys, values, position = self.config, state["k"], state["v"], state["length"]
        logits, hidden = torch.empty(1, c.vocab_size), torch.empty(1, c.hidden_size)
        self._library.izwi_decode(
            ctypes.byref(self._model),
            token,
            position,
            keys[0].shape[2],
            self._caches(*[t.data_ptr() for t in keys]),
            self._caches(*[t.data_ptr() for t in values]),
            ctypes.c_void_p(logits.data_ptr()),
            ctypes.c_void_p(hidden.data_ptr()),
            max(1, torch.get_num_threads()),
        )
        state["length"] = position + 1
        return logits, hidden

    def _describe(self, net: Any) -> _Model:
        c = net.config
        layers = (_Layer * c.num_layers)(*[self._layer(net.model.layers[i], i) for i in range(c.num_layers)])
        embed = self._matrix(net.model.embed_tokens)
        sizes = (c.num_layers, c.hidden_size, c.intermediate_size, c.num_heads, c.num_kv_heads, c.head_dim)
        return _Model(
            *sizes,
            int(c.activation == "gelu_tanh"),
            int(self._dtype == torch.bfloat16),
            c.norm_eps,
            c.attn_scale,
            float(torch.tensor(c.embed_scale, dtype=self._dtype)),
            0.0,
            embed,
            embed if c.tied else self._matrix(net.lm_head),
            layers,
            self._scale(net.model.norm),
        )

    def _layer(self, layer: Any, index: int) -> _Layer:
        c, a, m = self.config, layer.self_attn, layer.mlp
        rope = dict(c.ropes)[c.layer_types[index]]
        projections = (a.q_proj, a.k_proj, a.v_proj, a.o_proj, m.gate_proj, m.up_proj, m.down_proj)
        return _Layer(
            *[self._matrix(p) for p in projections],
            self._scale(layer.input_layernorm),
            self._scale(layer.post_attention_layernorm) if c.post_norms else None,
            self._scale(layer.pre_feedforward_layernorm if c.post_norms else layer.post_attention_layernorm),
            self._scale(layer.post_feedforward_layernorm) if c.post_norms else None,
            self._scale(a.q_norm) if c.qk_norm else None,
            self._scale(a.k_norm) if c.qk_norm else None,
            self._keep(torch.tensor(rope.inv_freq, dtype=torch.float32)),
            rope.gain,
            c.window_of(index),
        )

    def _matrix(self, layer: Any) -> affine.Matrix:
        bias = getattr(layer, "bias", None)
        add = None if bias is None else bias.detach().float().contiguous()
        if add is not None:
            self._kept.append(add)
        if hasattr(layer, "matrix"):
            matrix: affine.Matrix = layer.matrix(add)
            return matrix
        w = layer.weight
        pointer = None if add is None else add.data_ptr()
        return affine.Matrix(self._keep(w), None, None, pointer, *w.shape, _DENSE_BITS[w.dtype], 0, 0, 0)

    def _scale(self, norm: Any) -> int:
        return self._keep(norm.scale().detach().float().contiguous())

    def _keep(self, tensor: torch.Tensor) -> int:
        self._kept.append(tensor)
        return int(tensor.data_ptr())


def native_step(net: Any, backend: Any) -> NativeStep | None:
    """The compiled step for `net`, or None where it cannot serve it: another device, dtype or group size."""
    if backend.device != "cpu" or backend.torch_dtype not in _DENSE_BITS:
        return None
    for module in net.modules():
        if hasattr(module, "matrix") and (module.cols % 32 or module.group_size % 32):
            return None
        weight = getattr(module, "weight", None)
        if weight is not None and (weight.dtype not in _DENSE_BITS or not weight.is_contiguous()):
            return None
    return NativeStep(net, backend.torch_dtype)
