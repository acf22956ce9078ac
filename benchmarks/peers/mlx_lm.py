"""Peer: mlx-lm on a folder of MLX weights, the same that ours reads."""

from __future__ import annotations

import importlib
import itertools
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from izwi_lab.bench.contender import Measurement, Workload
from izwi_lab.bench.workloads import digest


class MlxLm:
    """Its own `generate_step`, which computes a step ahead while a token is read. device: "cpu" or "gpu"."""

    def __init__(self, *, folder: str, device: str) -> None:
        self._folder, self._device = Path(folder), device

    def load(self) -> Mapping[str, Any]:
        """Map the weights and read the tokenizer."""
        import mlx.core as mx

        mx.set_default_device(mx.Device(mx.DeviceType.gpu if self._device == "gpu" else mx.DeviceType.cpu))
        utils = importlib.import_module("mlx_lm.utils")
        self._generate = importlib.import_module("mlx_lm.generate")  # the package's own name hides the module
        self._model, config = utils.load_model(self._folder)
        self._tokenizer = utils.load_tokenizer(self._folder)
        return {"device": self._device, "quantisation": config.get("quantization")}

    def run(self, workload: Workload) -> Measurement:
        """Read the prompt, then decode greedily."""
        import mlx.core as mx

        data = workload.data
        ids = self._tokenizer.encode(data["text"], add_special_tokens=data["add_bos"])[: data["prompt_tokens"]]
        prompt = mx.array(np.asarray(ids, np.int32))
        start_s = time.perf_counter()
        steps = self._generate.generate_step(prompt, self._model, max_tokens=data["tokens"] + 1)
        tokens = [int(next(steps)[0])]
        prefilled_s = time.perf_counter()
        tokens += [int(token) for token, _ in itertools.islice(steps, data["tokens"])]
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
