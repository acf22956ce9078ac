"""A family for tests of the runtime: every answer names the model that gave it; steps can be slow, gated or failing."""

from __future__ import annotations

import threading
import time
from dataclasses import dataclass, field

import numpy as np

from izwi_lab.audio import Audio
from izwi_lab.results import AudioChunk, ChatReply, Segment, Speech, TextDelta, Timing, Transcript

RATE_HZ = 8000


@dataclass
class Script:
    """How the fake behaves, and what it was seen doing. One for all models; tests reset it."""

    load_s: float = 0.0
    step_s: float = 0.0
    load_errors: list[Exception] = field(default_factory=list)
    hold_load: threading.Event | None = None
    loads: list[str] = field(default_factory=list)
    closed: list[str] = field(default_factory=list)
    steps: list[str] = field(default_factory=list)
    ended: list[str] = field(default_factory=list)
    threads: set[int] = field(default_factory=set)
    load_threads: set[int] = field(default_factory=set)
    resident: int = 0
    peak: int = 0
    lock: threading.Lock = field(default_factory=threading.Lock)
    chat_options: dict = field(default_factory=dict)


script = Script()


def load(variant, folder, plan, backend, *, layout, load_format="auto"):
    with script.lock:
        script.loads.append(variant.id)
        script.load_threads.add(threading.get_ident())
        errors = script.load_errors
        error = errors.pop(0) if errors else None
        script.resident += variant.size_bytes
        script.peak = max(script.peak, script.resident)
    if script.hold_load is not None:
        script.hold_load.wait(10)
    time.sleep(script.load_s)
    if error is not None:
        with script.lock:
            script.resident -= variant.size_bytes
        raise error
    return FakeModel(variant, plan, backend)


class FakeModel:
    """Speaks, hears and answers one word per step."""

    voices = ("one", "two")

    def __init__(self, variant, plan, backend):
        self.variant, self.plan, self.backend, self.net = variant, plan, backend, None
        self.alive = True

    @property
    def nbytes(self):
        return self.variant.settings.get("real_bytes", self.variant.size_bytes)

    def close(self):
        assert self.alive, "closed twice"
        self.alive = False
        with script.lock:
            script.closed.append(self.variant.id)
            script.resident -= self.variant.size_bytes

    def _words(self, text, cancel):
        try:
            for word in text.split():
                assert self.alive, "a step on a dropped model"
                cancel.check()
                time.sleep(script.step_s)
                with script.lock:
                    script.steps.append(f"{self.variant.id}:{word}")
                    script.threads.add(threading.get_ident())
                yield word
        finally:
            script.ended.append(self.variant.id)

    def _samples(self, word):
        """Samples that only this model gives for this word."""
        level = sum(map(ord, self.variant.id + word)) % 97 / 100
        return Audio.from_samples(np.full(80, level, np.float32), RATE_HZ)

    def stream(self, what, *, cancel, seed=None, voice=None, language=None, speed=1.0, task="", prompt=None,
               word_times=False, temperature=0.0, sampling=None, max_tokens=512, stop=(), **chat_options):  # fmt: skip
        from izwi_lab.catalog.variant import Task

        script.chat_options = chat_options
        if self.variant.task is Task.TTS:
            words = what.split()
            for i, word in enumerate(self._words(what, cancel)):
                yield AudioChunk(self._samples(word), i, word, i == len(words) - 1)
        elif self.variant.task is Task.ASR:
            for i, word in enumerate(self._words(f"heard by {self.variant.id}", cancel)):
                yield Segment(i, i, i + 1, word, tokens=(i,))
        else:
            text = what if isinstance(what, str) else what[-1]["content"]
            for i, word in enumerate(self._words(f"{self.variant.id} {text}", cancel)):
                yield TextDelta(word + " ", i, token=i)

    def generate(self, what, **options):
        from izwi_lab.catalog.variant import Task

        pieces = list(self.stream(what, **options))
        timing = Timing(first_s=1e-6, tokens=len(pieces))
        if self.variant.task is Task.TTS:
            audio = Audio.concat([p.audio for p in pieces])
            return Speech(audio, what, voice=options["voice"] or "one", timing=timing)
        if self.variant.task is Task.ASR:
            return Transcript(" ".join(p.text for p in pieces), "en", what.duration_s, tuple(pieces), timing=timing)
        return ChatReply("".join(p.text for p in pieces), "stop", timing=timing)
