"""Peer: transformers on the same GGUF file, which it expands to dense weights."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

from izwi_lab.bench.contender import Measurement, Workload
from izwi_lab.bench.machine import cores
from izwi_lab.bench.workloads import digest


class TransformersChat:
    """dtype: "bfloat16" or "float32"."""

    def __init__(self, *, folder: str, file: str, dtype: str = "bfloat16") -> None:
        self._folder, self._file, self._dtype = folder, file, dtype

    def load(self) -> Mapping[str, Any]:
        """Expand the GGUF file to dense weights."""
        import torch
        from transformers import AutoModelForCausalLM, AutoTokenizer

        torch.set_num_threads(cores())
        self._tokenizer = AutoTokenizer.from_pretrained(self._folder, gguf_file=self._file)
        self._model = AutoModelForCausalLM.from_pretrained(
            self._folder, gguf_file=self._file, dtype=getattr(torch, self._dtype)
        ).eval()
        return {"threads": cores(), "dtype": self._dtype}

    def run(self, workload: Workload) -> Measurement:
        """Read the prompt, then decode greedily with its own cache."""
        import torch

        data = workload.data
        ids = self._tokenizer(data["text"], add_special_tokens=data["add_bos"])["input_ids"][: data["prompt_tokens"]]
        with torch.inference_mode():
            start_s = time.perf_counter()
            out = self._model(torch.tensor([ids]), use_cache=True, logits_to_keep=1)
            token = out.logits[:, -1:].argmax(-1)
            tokens = [int(token)]
            prefilled_s = time.perf_counter()
            for _ in range(data["tokens"]):
                out = self._model(token, past_key_values=out.past_key_values, use_cache=True)
                token = out.logits[:, -1:].argmax(-1)
                tokens.append(int(token))
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
