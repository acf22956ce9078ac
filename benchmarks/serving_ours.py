"""Ours for benchmarks.serving: an InferenceEngine, asked from threads as a server would."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from benchmarks.served import Served, measured
from benchmarks.serving_work import turns
from izwi_lab.bench.contender import Measurement, Workload
from izwi_lab.bench.workloads import digest

CHUNK_OF_PROMPT = 0.7  # of the time that a long prompt takes: by then a short request has come
TRIES = 20


class Serving:
    """An engine with one model. at_once: requests that are under way together. beside: see `serving_work.short`.

    warm: ask with the same beginning before what is timed.
    """

    def __init__(
        self,
        *,
        model: str,
        backend: str | None = None,
        device: str | None = None,
        dtype: str | None = None,
        load_format: str = "auto",
        at_once: int = 1,
        beside: int = 0,
        warm: bool = False,
    ) -> None:
        self._model, self._load_format = model, load_format
        self._where = {"backend": backend or "auto", "device": device, "dtype": dtype}
        self._at_once, self._beside, self._warm = at_once, beside, warm
        self._runs, self._rng, self._long_s = 0, np.random.default_rng(3), 0.0

    def load(self) -> Mapping[str, Any]:
        """Make the engine, load the model, answer once."""
        self._engine = self._opened()
        plan = self._engine.plan(self._model)
        return {
            "backend": plan.backend,
            "device": plan.device,
            "dtype": plan.dtype,
            "quantisation": plan.quantisation,
            "reason": plan.reason,
            "at_once": self._at_once,
        }

    def ready(self) -> Mapping[str, Any]:
        """How the native kernels came out, which the load has waited for."""
        from izwi_lab.backends import native

        return {"native_kernels": native.status()}

    def device_bytes(self) -> int:
        """What the framework holds on its device."""
        with self._engine.use(self._model) as model:
            return int(model.backend.memory_bytes())

    def run(self, workload: Workload) -> Measurement:
        """One run, whose prompts no run before it has read."""
        self._runs += 1
        runs: dict[str, Callable[[Mapping[str, Any]], Measurement]] = {
            "many": self._many,
            "short": self._short,
            "prefix": self._prefix,
            "mixed": self._mixed,
        }
        return runs[workload.name](workload.data)

    def _opened(self) -> Any:
        from izwi_lab import InferenceEngine

        engine = InferenceEngine(**self._where, load_format=self._load_format, idle_ttl_s=None)
        engine.load(self._model)
        return engine

    def _ask(self, messages: Sequence[Mapping[str, str]], *, served: Served | None = None, **options: Any) -> Served:
        """Ask, and note when what came. What has been read for a run is not found by another: it is another tenant."""
        from izwi_lab.runtime.types import ChatRequest

        request = ChatRequest(messages=messages, model=self._model, tenant=f"run {self._runs}", **options)
        served = served or Served(time.perf_counter())
        with self._engine.stream(request) as stream:
            for delta in stream:
                if delta.token is not None:
                    served.came_s.append(time.perf_counter())
                    served.tokens.append(delta.token)
                if delta.usage is not None:
                    served.prompt_tokens = delta.usage.prompt_tokens
        return served

    def _many(self, data: Mapping[str, Any]) -> Measurement:
        """So many threads, each of which takes the next request when it has its answer."""
        waiting = list(enumerate(data["messages"]))
        found: dict[int, Served] = {}

        def client() -> None:
            while waiting:
                n, messages = waiting.pop(0)
                found[n] = self._ask(messages, max_tokens=data["tokens"])

        together([client] * self._at_once)
        served = [found[n] for n in range(len(data["messages"]))]
        if short := [len(each.tokens) for each in served if len(each.tokens) != data["tokens"]]:
            raise RuntimeError(f"an end token came after {short} tokens; ask for something longer")
        with self._engine.use(self._model) as model:
            read = [model.tokenize(messages).ids.tolist() for messages in data["messages"]]
        return measured(served, input=digest(read), output=digest([each.tokens for each in served]))

    def _short(self, data: Mapping[str, Any]) -> Measurement:
        """The short request, at a random moment of the long prompt's reading; taken again where that was over."""
        for n in range(TRIES):
            messages = turns(f"Short {self._runs}.{n}", data["prompt_tokens"])
            if not self._beside:
                return first_of(self._ask(messages, max_tokens=1))
            long = threading.Thread(target=self._read_long, args=(f"Long {self._runs}.{n}",))
            if not self._long_s:
                self._read_long("Alone")
            long.start()
            time.sleep(float(self._rng.uniform(0, CHUNK_OF_PROMPT * self._long_s)))
            served = self._ask(messages, max_tokens=1)
            long.join()
            if served.start_s < self._long.came_s[0] and served.start_s > self._long.start_s:
                return first_of(served)
        raise RuntimeError(f"{TRIES} times the long prompt had been read before the short request came")

    def _read_long(self, label: str) -> None:
        messages = turns(label, self._beside)
        began_s = time.perf_counter()
        self._long = self._ask(messages, served=Served(began_s), max_tokens=1)
        self._long_s = self._long_s or self._long.first_s

    def _prefix(self, data: Mapping[str, Any]) -> Measurement:
        label = f"Run {self._runs}"
        if self._warm:
            self._ask(turns(label, data["prompt_tokens"], "What comes before this?"), max_tokens=1)
        return first_of(self._ask(turns(label, data["prompt_tokens"], "And what comes then?"), max_tokens=1))

    def _mixed(self, data: Mapping[str, Any]) -> Measurement:
        """Each request on its own thread, when it comes. The engine is a new one, whose metrics know only of these."""
        from izwi_lab.families.shared.sampling import Sampling

        self._engine.close()
        self._engine = self._opened()
        began_s = time.perf_counter()
        found: list[Served] = []

        def client(asked: Mapping[str, Any]) -> None:
            time.sleep(max(0.0, began_s + asked["comes_s"] - time.perf_counter()))
            sampling = Sampling(temperature=asked["temperature"])
            found.append(
                self._ask(asked["messages"], max_tokens=asked["tokens"], sampling=sampling, seed=asked["seed"])
            )

        together([lambda asked=asked: client(asked) for asked in data["requests"]])  # type: ignore[misc]
        queue, (name,) = self._engine.metrics.queue_s, self._engine.metrics.queue_s.series()
        measurement = measured(found)
        waited = {"queue_p50": queue.quantile(0.5, *name), "queue_p95": queue.quantile(0.95, *name)}
        return replace(measurement, latency={**measurement.latency, **waited})


def first_of(served: Served) -> Measurement:
    """A run whose only figure is the wait for the first token."""
    return Measurement(total_s=served.first_s, first_s=served.first_s, prompt_tokens=served.prompt_tokens)


def together(work: Sequence[Callable[[], None]]) -> None:
    """Run all on threads of their own; raises the first error of any."""
    errors: list[BaseException] = []

    def guarded(one: Callable[[], None]) -> None:
        try:
            one()
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=guarded, args=(one,)) for one in work]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if errors:
        raise errors[0]
