"""Peer: onnxruntime running the exported Kokoro graph, int8 as published or with float arithmetic.

Both it and ours are handed the phonemes, so neither pays for a text front end.
"""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from izwi_lab.bench.contender import Measurement, Workload
from izwi_lab.bench.machine import cores
from izwi_lab.bench.workloads import digest

RATE_HZ = 24_000
VOICE_SHAPE = (510, 1, 256)  # a style for every length of phoneme string


class OnnxKokoro:
    """precision: "int8" (the published graph) or "float" (see kokoro_float_graph)."""

    def __init__(self, *, folder: str, precision: str = "int8") -> None:
        self._folder, self._precision = Path(folder), precision

    def load(self) -> Mapping[str, Any]:
        """Open a session on the graph."""
        import onnxruntime

        graph = self._folder / "kokoro-v1.0.int8.onnx"
        if self._precision == "float":
            graph = _float_graph(graph)
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = cores()
        self._session = onnxruntime.InferenceSession(str(graph), options, providers=["CPUExecutionProvider"])
        symbols = json.loads((self._folder / "vocab.json").read_text(encoding="utf-8"))
        self._symbols = symbols.get("vocab", symbols)
        return {"threads": cores(), "precision": self._precision}

    def run(self, workload: Workload) -> Measurement:
        """Speak the phonemes once; the graph has no stream, so first audio is all of it."""
        data = workload.data
        ids = [self._symbols[symbol] for symbol in data["phonemes"]]
        voice = np.fromfile(self._folder / "voices" / f"{data['voice']}.bin", np.float32).reshape(VOICE_SHAPE)
        inputs = {
            "tokens": np.array([[0, *ids, 0]], np.int64),
            "style": voice[len(ids) - 1],
            "speed": np.ones(1, np.float32),
        }
        start_s = time.perf_counter()
        audio = self._session.run(None, inputs)[0]
        total_s = time.perf_counter() - start_s
        return Measurement(
            total_s=total_s,
            first_s=total_s,
            audio_s=audio.size / RATE_HZ,
            prompt_tokens=len(ids),
            input=digest(ids),
            output=digest([audio.size]),
        )


def _float_graph(graph: Path) -> Path:
    """The float graph of this file, made once and kept in the temporary folder."""
    with graph.open("rb") as file:
        name = hashlib.file_digest(file, "sha256").hexdigest()[:16]
    folder = Path(tempfile.gettempdir()) / "izwi-lab-bench"
    target = folder / f"kokoro-{name}-float.onnx"
    if not target.exists():
        from benchmarks.peers.kokoro_float_graph import to_float

        folder.mkdir(exist_ok=True)
        partial = target.with_suffix(f".{os.getpid()}.partial")
        to_float(graph, partial)
        partial.replace(target)
    return target
