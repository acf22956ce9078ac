"""Our own contender: any catalog variant on any backend, through the public step API and nothing else.

Clocks stop after `backend.synchronize()`, so that a device's queued work is counted.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Iterator, Mapping
from typing import Any

from izwi_lab.bench.contender import Measurement, Workload
from izwi_lab.bench.wer import word_error_rate
from izwi_lab.bench.workloads import digest, read_samples
from izwi_lab.catalog.variant import Family
from izwi_lab.errors import WrongTaskError


class Ours:
    """Options are those of `izwi_lab.load`; None leaves the choice to the router."""

    def __init__(
        self,
        *,
        model: str,
        backend: str | None = None,
        device: str | None = None,
        dtype: str | None = None,
        load_format: str = "auto",
    ) -> None:
        self._name, self._load_format = model, load_format
        self._backend, self._device, self._dtype = backend, device, dtype

    def load(self) -> Mapping[str, Any]:
        """Load through the public door; returns the plan that the router made."""
        import izwi_lab

        self._model: Any = izwi_lab.load(  # the verbs used below depend on the workload
            self._name,
            backend=self._backend or "auto",
            device=self._device,
            dtype=self._dtype,
            load_format=self._load_format,
        )
        plan = self._model.plan
        return {
            "backend": plan.backend,
            "device": plan.device,
            "dtype": plan.dtype,
            "quantisation": plan.quantisation,
            "reason": plan.reason,
            "weights_bytes": self._model.nbytes,
        }

    def ready(self) -> Mapping[str, Any]:
        """Wait for the native kernels, which compile in the background once per machine; how each came out."""
        from izwi_lab.backends import native

        for name in native.status():
            native.library(name, wait=True)
        return {"native_kernels": native.status()}

    def device_bytes(self) -> int:
        """What the framework holds on its device."""
        return int(self._model.backend.memory_bytes())

    def run(self, workload: Workload) -> Measurement:
        """One run of a chat, tts or asr workload."""
        runs = {"chat": self._chat, "tts": self._tts, "asr": self._asr}
        if workload.task not in runs:
            raise WrongTaskError(f"There is no standard run for the task {workload.task!r}, only for {sorted(runs)}.")
        return runs[workload.task](workload.data)

    def _now_s(self) -> float:
        self._model.backend.synchronize()
        return time.perf_counter()

    def _chat(self, data: Mapping[str, Any]) -> Measurement:
        """Prefill, then sample and decode by hand: the loop that `generate` is."""
        n = int(data["tokens"])
        prompt = self._prompt(data)
        session = self._session(n + 1)
        start_s = time.perf_counter()
        found = self._tokens(session, self._model.prefill(session, prompt))
        tokens = [next(found)]
        prefilled_s = self._now_s()
        tokens += itertools.islice(found, n)
        end_s = self._now_s()
        if len(tokens) <= n:
            raise RuntimeError(f"an end token came after {len(tokens)} tokens; give the model a prompt it goes on with")
        return Measurement(
            total_s=end_s - start_s,
            first_s=prefilled_s - start_s,
            prefill_s=prefilled_s - start_s,
            decode_s=end_s - prefilled_s,
            prompt_tokens=len(prompt),
            tokens=n,
            input=digest(prompt.ids.tolist()),
            output=digest([int(token) for token in tokens]),
        )

    def _session(self, max_tokens: int) -> Any:
        return self._model.session(seed=0, max_tokens=max_tokens)

    def _tokens(self, session: Any, step: Any) -> Iterator[int]:
        """Greedy tokens from `step` on; nothing is computed before it is asked for."""
        while True:
            token = self._model.sample(session, step)
            yield token
            step = self._model.decode(session, token)
            if session.done:
                return

    def _prompt(self, data: Mapping[str, Any]) -> Any:
        import numpy as np

        from izwi_lab.families.shared.steps import Prompt

        n = int(data["prompt_tokens"])
        if not data["text"]:
            return Prompt(ids=(np.arange(n, dtype=np.int32) * 37) % 1000)
        ids = self._model.tokenize(data["text"], template=False).ids
        return Prompt(ids=ids[:n])

    def _tts(self, data: Mapping[str, Any]) -> Measurement:
        """Streamed. Kokoro is handed the phonemes, as its peers are; other families read the text."""
        model = self._model
        if model.variant.family == Family.KOKORO:
            said = {"text": "", "phonemes": data["phonemes"], "voice": data["voice"]}
        else:
            said = {"text": data["text"], "voice": data["voice"], "language": data["language"]}
        prompt = model.tokenize(**said)
        start_s = time.perf_counter()
        first_s, samples, rate_hz = 0.0, 0, 1
        for chunk in model.stream(**said, seed=0):
            first_s = first_s or self._now_s() - start_s
            samples += chunk.audio.samples.size
            rate_hz = chunk.audio.rate_hz
        return Measurement(
            total_s=self._now_s() - start_s,
            first_s=first_s,
            audio_s=samples / rate_hz,
            prompt_tokens=len(prompt),
            input=digest([int(i) for i in prompt.ids if i]),
            output=digest([samples]),
        )

    def _asr(self, data: Mapping[str, Any]) -> Measurement:
        """Segment by segment as they come; temperature 0, which is greedy, without a ladder of retries."""
        from izwi_lab.audio import Audio

        audio = Audio(read_samples(data), int(data["rate_hz"]))
        start_s = time.perf_counter()
        first_s, texts, tokens = 0.0, [], 0
        for segment in self._model.stream(audio, language=data["language"], temperature=0.0, seed=0):
            first_s = first_s or self._now_s() - start_s
            texts.append(segment.text)
            tokens += len(segment.tokens)
        total_s = self._now_s() - start_s
        text = " ".join(part.strip() for part in texts)
        return Measurement(
            total_s=total_s,
            first_s=first_s or total_s,
            audio_s=audio.duration_s,
            tokens=tokens,
            quality=word_error_rate(data["reference"], text) if data["reference"] else None,
            input=digest([audio.samples.size]),
            output=digest(text),
        )
