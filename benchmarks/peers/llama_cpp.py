"""Peer: llama.cpp through llama-cpp-python, on the same GGUF file that ours reads."""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from izwi_lab.bench.contender import Measurement, Workload
from izwi_lab.bench.machine import cores
from izwi_lab.bench.workloads import digest


class LlamaCpp:
    """Greedy decoding with the model evaluated token by token, as its own `generate` does.

    flash_attention: on, since it was the faster setting where this was measured.
    """

    def __init__(self, *, folder: str, file: str, flash_attention: bool = True) -> None:
        self._path = Path(folder) / file
        self._flash = flash_attention

    def load(self) -> Mapping[str, Any]:
        """Open the GGUF file."""
        from llama_cpp import Llama

        n = cores()
        self._model = Llama(
            str(self._path), n_ctx=2048, n_threads=n, n_threads_batch=n, flash_attn=self._flash, verbose=False
        )
        return {"threads": n, "flash_attention": self._flash}

    def run(self, workload: Workload) -> Measurement:
        """Read the prompt, then decode greedily one token at a time."""
        model, data = self._model, workload.data
        ids = model.tokenize(data["text"].encode(), add_bos=data["add_bos"], special=False)[: data["prompt_tokens"]]
        model.reset()
        start_s = time.perf_counter()
        model.eval(ids)
        token = self._best()
        prefilled_s = time.perf_counter()
        tokens = [token]
        for _ in range(data["tokens"]):
            model.eval([token])
            token = self._best()
            tokens.append(token)
        end_s = time.perf_counter()
        return Measurement(
            total_s=end_s - start_s,
            first_s=prefilled_s - start_s,
            prefill_s=prefilled_s - start_s,
            decode_s=end_s - prefilled_s,
            prompt_tokens=len(ids),
            tokens=data["tokens"],
            input=digest(list(ids)),
            output=digest(tokens),
        )

    def _best(self) -> int:
        """The likeliest next token. Reading the logits waits for the computation."""
        logits = self._model._ctx.get_logits_ith(-1)
        return int(np.argmax(np.ctypeslib.as_array(logits, shape=(self._model.n_vocab(),))))
