"""What the clients of a soak ask for: chats of every kind, read to the end, cancelled, late, dropped or wrong."""

from __future__ import annotations

import contextlib
import threading
import time
import traceback
from collections import Counter
from dataclasses import dataclass, field

import numpy as np

from izwi_lab.cancel import CancelToken
from izwi_lab.errors import Cancelled, InvalidInputError, QueueFullError
from izwi_lab.families.shared.sampling import Sampling
from izwi_lab.runtime.types import PRIORITIES, ChatRequest

SHARED = "All who ask begin with these same words, so that a later prompt finds what an earlier one has read. "
KNOWN = tuple(f"{SHARED if i % 2 else ''}Question {i}." for i in range(4))  # their answers are known beforehand
KNOWN_TOKENS = 24
RUNAWAY = 4000  # characters, too many for the models' contexts
# A tokenizer keeps the pieces of the last 10,000 words it met, some kilobytes each if they are long. From so few words
# it has all of them soon, and what grows after that is a leak.
_LETTERS = np.random.default_rng(0)
WORDS = tuple("".join(chr(97 + c) for c in _LETTERS.integers(0, 26, _LETTERS.integers(1, 12))) for _ in range(300))


@dataclass(slots=True)
class Soak:
    """Clients on threads of their own, until `stop` is set. faults: what should not have happened."""

    engine: object
    models: tuple[object, ...]
    answers: dict[tuple[int, int], tuple[int, ...]] = field(default_factory=dict)
    done: Counter = field(default_factory=Counter)
    faults: list[str] = field(default_factory=list)
    stop: threading.Event = field(default_factory=threading.Event)

    def learn(self):
        """The known prompts' answers, each asked alone."""
        for m, model in enumerate(self.models):
            for p, prompt in enumerate(KNOWN):
                self.answers[m, p] = self.engine.chat(prompt, model=model, max_tokens=KNOWN_TOKENS).tokens

    def client(self, seed):
        """One thing after another."""
        rng = np.random.default_rng(seed)
        kinds = (self.known, self.known, self.whole, self.streamed, self.closed, self.unread, self.cancelled, self.late)
        while not self.stop.is_set():
            kind = self.wrong if rng.random() < 0.02 else kinds[rng.integers(len(kinds))]
            try:
                kind(rng)
                self.done[kind.__name__] += 1
            except QueueFullError as error:
                self.done["refused"] += 1
                time.sleep(min(0.2, error.retry_after_s))
            except Cancelled as error:
                if "unloaded" not in str(error):
                    self.faults.append(f"{kind.__name__}: {error!r}\n{traceback.format_exc()}")
                self.done["unloaded"] += 1
            except Exception as error:
                self.faults.append(f"{kind.__name__}: {error!r}\n{traceback.format_exc()}")

    def unload(self, rng):
        """A model leaves, and comes back with the next request for it; those under way keep it."""
        self.engine.unload(self.models[rng.integers(len(self.models))], wait=bool(rng.random() < 0.5), timeout_s=0.5)
        self.done["unload"] += 1

    # kinds of requests

    def known(self, rng):
        m, p = int(rng.integers(len(self.models))), int(rng.integers(len(KNOWN)))
        said = self.engine.run(self._request(rng, self.models[m], KNOWN[p], max_tokens=KNOWN_TOKENS)).tokens
        if said != self.answers[m, p]:
            self.faults.append(f"model {m}, prompt {p}: said {said} under load, {self.answers[m, p]} alone")

    def whole(self, rng):
        self.engine.run(self._any(rng))

    def streamed(self, rng):
        with self.engine.stream(self._any(rng)) as stream:
            for _ in stream:
                pass

    def closed(self, rng):
        stream = self.engine.stream(self._any(rng))
        for _ in range(rng.integers(0, 5)):
            next(stream, None)
        stream.close()

    def unread(self, rng):
        """Left to the collector, as a client that vanishes."""
        stream = self.engine.stream(self._any(rng))
        next(stream, None) if rng.random() < 0.5 else None
        del stream

    def cancelled(self, rng):
        token = CancelToken()
        timer = threading.Timer(float(rng.uniform(0, 0.05)), token.cancel)
        timer.start()
        self._stopped(self._any(rng, cancel=token))
        timer.cancel()
        timer.join()

    def late(self, rng):
        self._stopped(self._any(rng, timeout_s=float(rng.uniform(0, 0.05))))

    def wrong(self, rng):
        try:
            self.engine.run(self._request(rng, self._model(rng), "a" * RUNAWAY))
        except InvalidInputError:
            return
        raise AssertionError("a prompt longer than the context was answered")

    def _stopped(self, request):
        with contextlib.suppress(Cancelled):
            self.engine.run(request)

    def _any(self, rng, **more):
        said = " ".join(WORDS[n] for n in rng.integers(0, len(WORDS), rng.integers(1, 18)))
        text = (SHARED if rng.random() < 0.5 else "") + said
        options = [
            {},
            {"sampling": Sampling(temperature=0.9, top_k=20), "seed": int(rng.integers(1000))},
            {"sampling": Sampling(temperature=1.2, repetition_penalty=1.3, presence_penalty=0.4)},
            {"response_format": {"type": "regex", "regex": "[a-f]{3,9}( [0-9]{1,4}){0,3}"}},
            {"stop": ["a", "Q"], "logprobs": 1},
        ]
        most = int(rng.integers(1, 60))
        return self._request(rng, self._model(rng), text, max_tokens=most, **options[rng.integers(5)], **more)

    def _model(self, rng):
        return self.models[rng.integers(len(self.models))]

    def _request(self, rng, model, text, **options):
        tenant = f"tenant {rng.integers(3)}"
        return ChatRequest(
            messages=text, model=model, tenant=tenant, priority=list(PRIORITIES)[rng.integers(4)], **options
        )
