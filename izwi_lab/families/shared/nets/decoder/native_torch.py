"""The compiled step (`backends/native/decoder.cpp`) for a torch decoder on the CPU, through ctypes."""

from __future__ import annotations

import array
import ctypes
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from izwi_lab.errors import InvalidInputError
from izwi_lab.families.shared.nets.decoder import cache
from izwi_lab.families.shared.nets.decoder.cache_torch import reserve
from izwi_lab.families.shared.nets.decoder.config import CONV
from izwi_lab.families.shared.nets.quant import native_torch as affine

_DENSE_BITS = {torch.float32: 32, torch.bfloat16: 16}
_CACHE_KINDS = {torch.float32: 0, torch.bfloat16: 1, torch.int8: 2}
# Positions of one call, on an AVX-512 CPU. Quantised (SmolLM2 Q4_1, bfloat16, one thread): 2.9, 2.0 and 1.4 times as
# fast as the plain path with 2, 8 and 64; 512 bounds the scratch memory. Dense (Qwen3-0.6B, bfloat16, two threads):
# 2.3, 1.9 and 1.4 times with 1, 2 and 4, but no faster with 8.
_MOST, _MOST_DENSE = 512, 4


class _Rope(ctypes.Structure):
    """`struct Rope` of step.h."""

    _fields_ = (("inv_freq", ctypes.c_void_p), ("gain", ctypes.c_float), ("unused", ctypes.c_int32))


class _Layer(ctypes.Structure):
    """`struct Layer` of step.h."""

    _fields_ = (
        *((n, affine.Matrix) for n in ("q", "k", "v", "o", "gate", "up", "down")),
        *((n, ctypes.c_void_p) for n in ("pre_attn", "post_attn", "pre_mlp", "post_mlp", "q_norm", "k_norm")),
        *((n, ctypes.c_void_p) for n in ("conv", "conv_bias")),
        *((n, ctypes.c_int32) for n in ("taps", "rope", "window", "ring")),
    )


class _Model(ctypes.Structure):
    """`struct Model` of step.h."""

    _fields_ = (
        *((n, ctypes.c_int32) for n in ("layers", "hidden", "inter", "heads", "kv_heads", "head_dim")),
        *((n, ctypes.c_int32) for n in ("gelu", "bf16", "ropes", "unused")),
        *((n, ctypes.c_float) for n in ("eps", "attn_scale", "embed_scale", "unused_too")),
        ("embed", affine.Matrix),
        ("head", affine.Matrix),
        ("layer", ctypes.POINTER(_Layer)),
        ("rope", ctypes.POINTER(_Rope)),
        ("norm", ctypes.c_void_p),
    )


class Input(ctypes.Structure):
    """`struct Input` of step.h: where the rows of a step come from, and its head. See `NativeStep.run_rows`."""

    _fields_ = (
        ("rows", ctypes.c_void_p),
        *((n, ctypes.POINTER(affine.Matrix)) for n in ("table", "project", "head")),
    )


class _Sequence(ctypes.Structure):
    """`struct Sequence` of step.h."""

    _fields_ = (
        ("layer", ctypes.c_void_p),
        ("blocks", ctypes.c_void_p),
        ("kind", ctypes.c_int32),
        ("block", ctypes.c_int32),
    )


_SIZED = {"layer": _Layer, "model": _Model, "sequence": _Sequence, "input": Input}


class NativeStep:
    """Some positions of a sequence, or of several, through all layers in one call."""

    def __init__(self, decoder: Any, dtype: torch.dtype, *, embed: Any = None, head: Any = None) -> None:
        """Describe a `torch_net.Decoder`. embed: the module of its embedding, None where rows are given; head: of its
        logits, None for the embedding.
        """
        self.config = decoder.config
        self._kept: list[torch.Tensor] = []  # what the descriptors point into
        self._library: ctypes.CDLL | None = None
        self._dtype = dtype
        self._like = torch.empty(0, dtype=dtype)  # what caches are made like, whatever the norms are kept in
        self._rings = [self.config.ring_of(i) for i in range(self.config.num_layers)]
        self._rope_kinds = [kind for kind, _ in self.config.ropes]
        self._model = self._describe(decoder, embed, head)
        self._most = _MOST if any(hasattr(m, "matrix") for m in decoder.layers.modules()) else _MOST_DENSE

    def ready(self) -> bool:
        """True once the library is compiled."""
        if self._library is None:
            library = affine.library()
            if library is None:
                return False
            for name, cls in _SIZED.items():
                size = getattr(library, f"izwi_sizeof_{name}")
                size.restype = ctypes.c_long
                if size() != ctypes.sizeof(cls):
                    raise RuntimeError(f"decoder.cpp and its Python declarations disagree on struct {name}")
            library.izwi_step.restype = None
            self._library = library
        return True

    def serves(self, positions: int) -> bool:
        """True where `run` takes so many positions faster than the plain path does, and is compiled."""
        return positions <= self._most and self.ready()

    def run(
        self, ids: torch.Tensor, state: dict[str, Any], *, every: bool = False
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Ids, T of one sequence -> logits [1, V] and hidden [1, D] of the last, float32; the state grows by T.

        every: of all positions, [1, T, V] and [1, T, D].

        Raises:
            IndexError: an id that is not in the vocabulary.
        """
        logits, hidden = self.run_together([(ids, state)], every=every)
        return (logits[None], hidden[None]) if every else (logits, hidden)

    def run_together(
        self,
        pieces: Sequence[tuple[torch.Tensor, dict[str, Any]]],
        *,
        wants: Sequence[bool] | None = None,
        every: bool = False,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Pieces (ids, state) of different sequences in one pass over the weights; each state grows by its ids.

        Pieces of one paged state follow each other: a position in a piece of its own is computed as if decoded. Gives
        logits [N, V] and hidden [N, D], float32, of the last position of each piece that wants (all where `wants`
        is None), or of all positions in order.

        Raises:
            IndexError: an id that is not in the vocabulary.
        """
        parts = [(0, ids.reshape(-1).tolist(), state) for ids, state in pieces]
        return self._run(parts, Input(), wants, every)

    def input(self, table: Any, *, project: Any = None, head: Any = None) -> Input:
        """Another embedding and head than the step's own: modules. project: a Linear that embeddings go through."""
        parts = [None if m is None else ctypes.pointer(self._matrix(m)) for m in (table, project, head)]
        return Input(None, *parts)

    def run_rows(
        self, rows: torch.Tensor | None, tokens: Sequence[int], state: dict[str, Any], given: Input | None = None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """As `run_rows_together` of one sequence."""
        return self.run_rows_together([(rows, tokens, state)], given)

    def run_rows_together(
        self,
        pieces: Sequence[tuple[torch.Tensor | None, Sequence[int], dict[str, Any]]],
        given: Input | None = None,
        *,
        wants: Sequence[bool] | None = None,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Pieces (embeddings [T, W], tokens after them, state) of different sequences in one pass over the weights.

        Gives logits [N, V] and hidden [N, D], float32, of the last position of each piece that wants (all where `wants`
        is None); each state grows by its rows. given: from `input`; None for the step's own embedding and head. Rows
        are as wide as the projection of `given` takes, else D.

        Raises:
            IndexError: a token that the table does not have.
            InvalidInputError: embeddings of another width.
        """
        given = Input() if given is None else Input(None, given.table, given.project, given.head)
        width = given.project.contents.cols if given.project else self.config.hidden_size
        wide = [rows for rows, _, _ in pieces if rows is not None]
        for rows in wide:
            if rows.shape[1:] != (width,):
                raise InvalidInputError(f"Embeddings {list(rows.shape)} for a decoder that reads rows of {width}.")
        held = None
        if wide:
            held = (torch.cat(wide) if len(wide) > 1 else wide[0]).to(torch.float32).contiguous()
            given.rows = held.data_ptr()
        parts = [(0 if rows is None else len(rows), tokens, state) for rows, tokens, state in pieces]
        return self._run(parts, given, wants, False)

    def _run(
        self,
        parts: Sequence[tuple[int, Sequence[int], dict[str, Any]]],
        given: Input,
        wants: Sequence[bool] | None,
        every: bool,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Parts (number of given rows, tokens after them, state) through the library. What is pointed into lives."""
        assert self._library is not None
        table = given.table.contents if given.table else self._model.embed
        head = given.head.contents if given.head else self._model.head
        for before, tokens, state in parts:  # nothing changes before all is known to be right
            self._check(before, tokens, state, table.rows, "table" if given.table else "vocabulary")
        rows, sequences, tables, read, outs = array.array("i"), [], [], 0, 0
        reached: dict[int, int] = {}  # of states that several parts belong to
        for number, (before, tokens, state) in enumerate(parts):
            position = reached.get(id(state), state["length"])
            reached[id(state)] = position + before + len(tokens)
            sequence, caches = self._sequence(state, reached[id(state)])
            sequences.append(sequence)
            tables.append(caches)
            for token in (*range(-1 - read, -1 - read - before, -1), *tokens):
                rows.extend((token, position, number, outs if every else -1))
                position, outs = position + 1, outs + every
            read += before
            if not every and (wants is None or wants[number]):
                rows[-1], outs = outs, outs + 1
        logits, hidden = torch.empty(outs, head.rows), torch.empty(outs, self.config.hidden_size)
        if parts:
            self._library.izwi_step(
                ctypes.byref(self._model),
                ctypes.byref(given),
                ctypes.c_void_p(rows.buffer_info()[0]),
                len(rows) // 4,
                (_Sequence * len(sequences))(*sequences),
                outs,
                ctypes.c_void_p(logits.data_ptr()),
                ctypes.c_void_p(hidden.data_ptr()),
                max(1, torch.get_num_threads()),
            )
        for before, tokens, state in parts:
            state["length"] += before + len(tokens)
        return logits, hidden

    @staticmethod
    def _check(before: int, tokens: Sequence[int], state: Mapping[str, Any], size: int, what: str) -> None:
        """Raise where a part cannot be computed: see `run_together`; and where it has no position, or no room."""
        if tokens and (min(tokens) < 0 or max(tokens) >= size):
            raise IndexError(f"ids from {min(tokens)} to {max(tokens)} in a {what} of {size}")
        if not before and not tokens:
            raise InvalidInputError("A piece without a position.", hint="Expected at least one id or embedding.")
        cache.check_room(state, state["length"] + before + len(tokens))

    def _sequence(self, state: dict[str, Any], positions: int) -> tuple[_Sequence, array.array[int]]:
        """`struct Sequence` of a state with room for `positions`, and the table of caches it points into."""
        blocks, size = state.get("blocks"), state.get("block", 0)
        if not state["conv"] or (blocks is None and not self._roomy(state, positions)):
            reserve(state, self.config, self._like, positions)
        int8 = cache.is_int8(state)
        table = array.array("q")
        for layer, k in enumerate(state["k"]):
            if k is None:
                conv = state["conv"][layer]
                table.extend((conv.data_ptr(), 0, 0, 0, conv.shape[1]))
                continue
            scales = [state[name][layer].data_ptr() for name in cache.SCALES] if int8 else (0, 0)
            table.extend((k.data_ptr(), state["v"][layer].data_ptr(), *scales, k.shape[2]))
        kind = _CACHE_KINDS[torch.int8 if int8 else self._dtype]
        at = None if blocks is None else blocks.data_ptr()
        return _Sequence(table.buffer_info()[0], at, kind, size), table

    def _roomy(self, state: Mapping[str, Any], positions: int) -> bool:
        keys = state["k"]
        if not keys:
            return False
        for ring, k in zip(self._rings, keys, strict=True):
            if k is not None and k.shape[2] < (min(ring, positions) if ring else positions):
                return False
        return True

    def _describe(self, decoder: Any, embed: Any, head: Any) -> _Model:
        c = self.config
        layers = (_Layer * c.num_layers)(*[self._layer(decoder.layers[i], i) for i in range(c.num_layers)])
        frequencies = [self._keep(torch.tensor(rope.inv_freq, dtype=torch.float32)) for _, rope in c.ropes]
        described = [_Rope(at, rope.gain, 0) for at, (_, rope) in zip(frequencies, c.ropes, strict=True)]
        ropes = (_Rope * len(described))(*described)
        table = affine.Matrix() if embed is None else self._matrix(embed)
        sizes = (c.num_layers, c.hidden_size, c.intermediate_size, c.num_heads, c.num_kv_heads, c.head_dim)
        return _Model(
            *sizes,
            int(c.activation == "gelu_tanh"),
            int(self._dtype == torch.bfloat16),
            len(c.ropes),
            0,
            c.norm_eps,
            c.attn_scale,
            float(torch.tensor(c.embed_scale, dtype=self._dtype)),
            0.0,
            table,
            table if head is None else self._matrix(head),
            layers,
            ropes,
            self._scale(decoder.norm),
        )

    def _layer(self, layer: Any, index: int) -> _Layer:
        c, m, kind = self.config, layer.mlp, self.config.layer_types[index]
        wide = [self._matrix(p) for p in (m.gate_proj, m.up_proj, m.down_proj)]
        norms = (
            self._scale(layer.input_layernorm),
            self._scale(layer.post_attention_layernorm) if c.post_norms else None,
            self._scale(layer.pre_feedforward_layernorm if c.post_norms else layer.post_attention_layernorm),
            self._scale(layer.post_feedforward_layernorm) if c.post_norms else None,
        )
        if kind == CONV:
            part = layer.conv
            weight = part.conv.weight.detach()[:, 0].T.float().contiguous()  # [taps, D]
            bias = None if part.conv.bias is None else self._keep(part.conv.bias.detach().float().contiguous())
            mix = (self._matrix(part.in_proj), affine.Matrix(), affine.Matrix(), self._matrix(part.out_proj))
            return _Layer(
                *mix, *wide, *norms, None, None, self._keep(weight), bias, c.conv_kernel, 0, 0, c.ring_of(index)
            )
        a = layer.self_attn
        parts = [self._matrix(p) for p in (a.q_proj, a.k_proj, a.v_proj, a.o_proj)]
        heads = (self._scale(a.q_norm), self._scale(a.k_norm)) if c.qk_norm else (None, None)
        rope = self._rope_kinds.index(kind)
        return _Layer(*parts, *wide, *norms, *heads, None, None, 0, rope, c.window_of(index), c.ring_of(index))

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


def native_step(decoder: Any, backend: Any, *, embed: Any = None, head: Any = None) -> NativeStep | None:
    """The compiled step for a decoder and its own embedding and head, if any (see `NativeStep`); None where it cannot
    serve one of them: another device, dtype or group size.
    """
    if backend.device != "cpu" or backend.torch_dtype not in _DENSE_BITS:
        return None
    if not all(servable(m) for m in (decoder.layers, decoder.norm, embed, head)):
        return None
    affine.wait_for_build()
    return NativeStep(decoder, backend.torch_dtype, embed=embed, head=head)


def servable(part: Any) -> bool:
    """Whether the compiled step can read the weights of a module; None is no module, and no hindrance."""
    for module in () if part is None else part.modules():
        if hasattr(module, "matrix") and not module.panelled:
            return False
        weight = getattr(module, "weight", None)
        if weight is not None and (weight.dtype not in _DENSE_BITS or not weight.is_contiguous()):
            return False
    return True
