"""Peer: llama.cpp decoding several sequences in one call, as its own server does, on the GGUF file that ours reads."""

from __future__ import annotations

import ctypes
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.served import Served, measured
from izwi_lab.bench.contender import Measurement, Workload
from izwi_lab.bench.machine import cores
from izwi_lab.bench.workloads import digest

ROOM = 4096  # tokens of one llama_decode; a prompt that is longer than what is left of it waits for the next
MICRO = 512  # tokens that it computes at once within one


class LlamaParallel:
    """`at_once` sequences, each with a cache of its own; one llama_decode a step takes all of them on.

    A request that ends leaves its place to the next, whose prompt is read together with the others' next tokens.
    Greedy: the largest logit of each sequence, in numpy. Prompts and answers are of the lengths that the workload says.
    unified: one buffer for all caches instead of one for each, which was slower where this was measured.
    """

    def __init__(
        self, *, folder: str, file: str, at_once: int, context: int, flash_attention: bool = True, unified: bool = False
    ) -> None:
        self._path, self._at_once, self._context = Path(folder) / file, at_once, context
        self._flash, self._unified = flash_attention, unified

    def load(self) -> Mapping[str, Any]:
        """Open the GGUF file, make room for the sequences."""
        import llama_cpp as lib

        self._lib, threads = lib, cores()
        lib.llama_backend_init()
        quiet = lib.llama_log_callback(lambda level, text, data: None)
        lib.llama_log_set(quiet, ctypes.c_void_p(0))
        self._quiet = quiet  # it must not be collected while the library may call it
        self._model = lib.llama_model_load_from_file(str(self._path).encode(), lib.llama_model_default_params())
        if not self._model:
            raise RuntimeError(f"llama.cpp could not open {self._path.name}")
        options = lib.llama_context_default_params()
        options.n_ctx, options.n_batch, options.n_ubatch = self._at_once * self._context, ROOM, MICRO
        options.n_seq_max, options.kv_unified = self._at_once, self._unified
        options.n_threads = options.n_threads_batch = threads
        options.flash_attn_type = 1 if self._flash else 0
        self._ctx = lib.llama_init_from_model(self._model, options)
        self._vocab = lib.llama_model_get_vocab(self._model)
        self._width = lib.llama_vocab_n_tokens(self._vocab)
        self._batch = lib.llama_batch_init(ROOM, 0, 1)
        return {"threads": threads, "flash_attention": self._flash, "unified": self._unified, "at_once": self._at_once}

    def run(self, workload: Workload) -> Measurement:
        """All requests of the workload, `at_once` of them at a time."""
        data = workload.data
        prompts = [self._ids(text) for text in data["texts"]]
        memory = self._lib.llama_get_memory(self._ctx)
        self._lib.llama_memory_clear(memory, True)
        began_s = time.perf_counter()
        waiting = list(range(len(prompts)))
        served = [Served(began_s, prompt_tokens=len(ids)) for ids in prompts]
        places: dict[int, int] = {}  # sequence -> request
        read: dict[int, int] = {}  # request -> positions in its cache
        while waiting or places:
            for place in range(self._at_once):
                if place not in places and waiting:
                    self._lib.llama_memory_seq_rm(memory, place, -1, -1)
                    places[place] = waiting.pop(0)
                    read[places[place]] = 0
                    served[places[place]].start_s = time.perf_counter()
            for place, token in self._step(places, read, prompts, served).items():
                each = served[places[place]]
                each.came_s.append(time.perf_counter())
                each.tokens.append(token)
                if len(each.tokens) == data["tokens"]:
                    del places[place]
        return measured(served, input=digest([*map(list, prompts)]), output=digest([each.tokens for each in served]))

    def _step(
        self,
        places: Mapping[int, int],
        read: dict[int, int],
        prompts: Sequence[Sequence[int]],
        served: Sequence[Served],
    ) -> dict[int, int]:
        """One llama_decode of the last tokens and of new prompts: the next token of each sequence."""
        batch, wanted, n = self._batch, {}, 0
        for place, request in places.items():
            said = served[request].tokens
            ids = said[-1:] if said else prompts[request]
            if n + len(ids) > ROOM:
                continue
            for i, token in enumerate(ids):
                batch.token[n], batch.pos[n], batch.n_seq_id[n] = token, read[request] + i, 1
                batch.seq_id[n][0], batch.logits[n] = place, i == len(ids) - 1
                n += 1
            read[request] += len(ids)
            wanted[place] = n - 1
        batch.n_tokens = n
        if (code := self._lib.llama_decode(self._ctx, batch)) != 0:
            raise RuntimeError(f"llama_decode of {n} tokens gave {code}")
        return {place: self._best(row) for place, row in wanted.items()}

    def _best(self, row: int) -> int:
        logits = self._lib.llama_get_logits_ith(self._ctx, row)
        return int(np.argmax(np.ctypeslib.as_array(logits, shape=(self._width,))))

    def _ids(self, text: str) -> list[int]:
        raw = text.encode()
        room = len(raw) + 8
        found = (self._lib.llama_token * room)()
        count = self._lib.llama_tokenize(self._vocab, raw, len(raw), found, room, False, True)
        if count < 0:
            raise RuntimeError("llama.cpp could not tokenize the prompt")
        return list(found[:count])
