"""Peer: faster-whisper (CTranslate2), on the same model.bin that ours reads; greedy, no beam, no temperature ladder."""

from __future__ import annotations

import json
import re
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from izwi_lab.bench.contender import Measurement, Workload
from izwi_lab.bench.machine import cores
from izwi_lab.bench.wer import word_error_rate
from izwi_lab.bench.workloads import digest, read_samples

TIMESTAMP = re.compile(r"<\|\d+\.\d\d\|>")
TIMESTAMPS = 1501  # 0.00 to 30.00 in steps of 0.02 s


class FasterWhisper:
    """compute_type: CTranslate2's name of the arithmetic, "int8" or "float32" on a processor.

    batched: cut the recording at pauses and decode the pieces together, as its BatchedInferencePipeline does.
    """

    def __init__(self, *, folder: str, compute_type: str = "int8", batched: bool = False) -> None:
        self._folder, self._compute_type, self._batched = Path(folder), compute_type, batched

    def load(self) -> Mapping[str, Any]:
        """Open the CTranslate2 folder."""
        from faster_whisper import BatchedInferencePipeline, WhisperModel

        n = cores()
        with tempfile.TemporaryDirectory() as spare:
            folder = _with_vocabulary(self._folder, Path(spare))
            model = WhisperModel(str(folder), device="cpu", compute_type=self._compute_type, cpu_threads=n)
        self._transcribe = BatchedInferencePipeline(model).transcribe if self._batched else model.transcribe
        return {"threads": n, "compute_type": self._compute_type, "batched": self._batched}

    def run(self, workload: Workload) -> Measurement:
        """Transcribe the recording once."""
        data = workload.data
        samples = read_samples(data)
        start_s = time.perf_counter()
        segments, info = self._transcribe(
            samples,
            language=data["language"],
            beam_size=1,
            temperature=0.0,
            condition_on_previous_text=False,
            without_timestamps=False,
            vad_filter=self._batched,  # pieces to batch are found at pauses
        )
        first_s, texts, tokens = 0.0, [], 0
        for segment in segments:  # a generator: the work is done here
            first_s = first_s or time.perf_counter() - start_s
            texts.append(segment.text)
            tokens += len(segment.tokens)
        total_s = time.perf_counter() - start_s
        text = "".join(texts)
        return Measurement(
            total_s=total_s,
            first_s=first_s,
            audio_s=info.duration,
            tokens=tokens,
            quality=word_error_rate(data["reference"], text) if data["reference"] else None,
            input=digest([samples.size]),
            output=digest(text),
        )


def _with_vocabulary(folder: Path, spare: Path) -> Path:
    """CTranslate2 wants a vocabulary file; where the checkpoint has none, it is written from tokenizer.json.

    Tokenizer files of older exports end at the last control token; the timestamps come after it.
    """
    if any(folder.glob("vocabulary.*")):
        return folder
    tokenizer = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))
    ids = dict(tokenizer["model"]["vocab"]) | {t["content"]: t["id"] for t in tokenizer["added_tokens"]}
    by_id = {number: token for token, number in ids.items() if not TIMESTAMP.fullmatch(token)}
    words = [by_id[i] for i in range(max(by_id) + 1)]
    words += [f"<|{0.02 * i:.2f}|>" for i in range(TIMESTAMPS)]
    (spare / "vocabulary.json").write_text(json.dumps(words), encoding="utf-8")
    for path in folder.iterdir():
        if path.is_file():
            (spare / path.name).symlink_to(path.resolve())
    return spare
