"""The native CPU decoder step, bound to a torch decoder's weights. None of it is required: the net runs without."""

from __future__ import annotations

import ctypes
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch

from izwi_lab.backends import native
from izwi_lab.families.whisper.config import WhisperConfig

_WEIGHT_TYPES = {torch.float32: 0, torch.float16: 1, torch.bfloat16: 2}
_CROSS_TYPES = {torch.float32: 0, torch.float16: 1}
_MATRICES = ("q_proj", "k_proj", "v_proj", "out_proj")

State = dict[str, Any]


class NativeDecoder:
    """`backends/native/whisper.cpp` over one decoder: matrices read where they lie, vectors widened to float32."""

    def __init__(self, decoder: Any, config: WhisperConfig) -> None:
        self._config = config
        self._held: list[torch.Tensor] = []
        self._weight_type = _WEIGHT_TYPES[decoder.embed_tokens.weight.dtype]
        self._table = np.array(self._addresses(decoder), np.int64)

    @classmethod
    def of(cls, decoder: Any, config: WhisperConfig, device: str) -> NativeDecoder | None:
        """For these weights on this device, or None where the kernel cannot read them."""
        matrices = [p for n, p in decoder.named_parameters() if p.dim() == 2 and "embed_positions" not in n]
        kinds = {p.dtype for p in matrices}
        head = config.d_model // config.decoder_attention_heads
        fits = head % 16 == 0 and config.d_model % 16 == 0 and config.decoder_ffn_dim % 16 == 0
        if device != "cpu" or len(kinds) != 1 or not kinds <= set(_WEIGHT_TYPES) or not fits:
            return None
        if not all(p.is_contiguous() for p in matrices):
            return None
        native.library("whisper")  # starts the build, once per machine
        return cls(decoder, config)

    def step(self, ids: torch.Tensor, states: Sequence[State], rows: Sequence[int]) -> tuple[Any, Any] | None:
        """The net's `step`, or None when there is no library here or it cannot serve these states."""
        found = self._run(ids, states, rows, ())
        return None if found is None else found[:2]

    def align(self, ids: torch.Tensor, state: State, heads: Sequence[tuple[int, int]]) -> tuple[Any, Any] | None:
        """The net's `align`, or None."""
        found = self._run(ids, [state], range(ids.shape[1]), heads)
        return None if found is None else (found[2], found[0][0])

    def _run(
        self, ids: torch.Tensor, states: Sequence[State], rows: Sequence[int], heads: Sequence[tuple[int, int]]
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor] | None:
        # Waiting seconds for the first build on a machine beats widening the decoder to float32 and decoding slowly.
        library = native.library("whisper", wait=native.WAIT_S)
        batch, tokens = ids.shape
        first = states[0]
        if library is None or not _alike(states) or first["cross_k"].dtype not in _CROSS_TYPES:
            return None
        capacity, sources = first["self_k"].shape[2], first["cross_k"].shape[2]
        lengths = np.array([s["length"] for s in states], np.int32)
        c = self._config
        if int(lengths.max()) + tokens > min(capacity, c.max_target_positions):
            raise ValueError(f"{int(lengths.max()) + tokens} tokens do not fit a session of {capacity}")
        flat = ids.to(torch.int32).contiguous()
        if int(flat.min()) < 0 or int(flat.max()) >= c.vocab_size:
            raise IndexError(f"token ids must be 0 to {c.vocab_size - 1}")
        places = (lengths[:, None] + np.arange(tokens, dtype=np.int32)).astype(np.int32)
        owners = [[s[key].data_ptr() for s in states] for key in ("self_k", "self_v", "cross_k", "cross_v")]
        addresses = np.repeat(np.array(owners, np.int64), tokens, axis=1)
        wanted = np.array([b * tokens + range(tokens)[r] for b in range(batch) for r in rows], np.int32)
        pairs = np.array(heads, np.int32).reshape(-1)
        logits = torch.empty(batch, len(rows), c.vocab_size)
        hidden = torch.empty(batch, len(rows), c.d_model)
        scores = torch.empty(len(heads), batch * tokens, sources)
        sizes = (c.d_model, c.decoder_attention_heads, c.decoder_layers, c.vocab_size, c.decoder_ffn_dim)
        types = (self._weight_type, _CROSS_TYPES[first["cross_k"].dtype])
        dims = np.array([*sizes, capacity, sources, *types, tokens, len(rows) if heads else 0], np.int32)
        library.whisper_step(
            *(_p(a) for a in (self._table, dims)),
            ctypes.c_int32(batch * tokens),
            ctypes.c_void_p(flat.data_ptr()),
            *(_p(a) for a in (places, addresses)),
            ctypes.c_int32(len(wanted)),
            _p(wanted),
            *(ctypes.c_void_p(t.data_ptr()) for t in (logits, hidden)),
            ctypes.c_int32(len(heads)),
            _p(pairs),
            ctypes.c_void_p(scores.data_ptr()),
        )
        for state in states:
            state["length"] += tokens
        return logits, hidden, scores

    def _addresses(self, decoder: Any) -> list[int]:
        """Addresses in the order of the enum in whisper.cpp."""
        out: list[int] = []
        for layer in decoder.layers:
            self_attn, cross = layer.self_attn, layer.encoder_attn
            out += self._norm(layer.self_attn_layer_norm)
            out += [*self._linear(self_attn.q_proj), self_attn.k_proj.weight.data_ptr()]
            out += self._linear(self_attn.v_proj) + self._linear(self_attn.out_proj)
            out += self._norm(layer.encoder_attn_layer_norm) + self._linear(cross.q_proj) + self._linear(cross.out_proj)
            out += self._norm(layer.final_layer_norm) + self._linear(layer.fc1) + self._linear(layer.fc2)
        out += [decoder.embed_tokens.weight.data_ptr(), self._vector(decoder.embed_positions.weight)]
        return out + self._norm(decoder.layer_norm)

    def _linear(self, linear: Any) -> list[int]:
        return [linear.weight.data_ptr(), self._vector(linear.bias)]

    def _norm(self, norm: Any) -> list[int]:
        return [self._vector(norm.weight), self._vector(norm.bias)]

    def _vector(self, values: torch.Tensor) -> int:
        wide = values.detach().float().contiguous()
        self._held.append(wide)
        return int(wide.data_ptr())


def _alike(states: Sequence[Mapping[str, Any]]) -> bool:
    """True when one call can serve all states: same capacity, same number of encoder states, contiguous."""
    first = states[0]
    return all(
        s[k].shape == first[k].shape and s[k].dtype == first[k].dtype and s[k].is_contiguous()
        for s in states
        for k in ("self_k", "self_v", "cross_k", "cross_v")
    ) and all(s["self_k"].dtype == torch.float32 for s in states)


def _p(array: np.ndarray) -> ctypes.c_void_p:
    return ctypes.c_void_p(array.ctypes.data)
