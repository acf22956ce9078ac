"""EngineCore: how a request meets a model. `service.InferenceEngine` adds the verbs users type.

A request is checked, routed to a variant and a plan, bound to a lease on the loaded model, run, and the lease let go.
It never looks a model up again after that, so what loads or leaves beside it cannot change who answers.
"""

from __future__ import annotations

import os
import threading
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, Self

from izwi_lab import settings
from izwi_lab.backends.base import BackendPlan
from izwi_lab.cancel import CancelToken
from izwi_lab.catalog.variant import Task
from izwi_lab.engine.admission import QueueLimits
from izwi_lab.engine.lane import LaneOptions
from izwi_lab.engine.metrics import EngineMetrics
from izwi_lab.engine.outbox import Outbox
from izwi_lab.engine.timeline import Explanation
from izwi_lab.errors import InvalidInputError, IzwiError
from izwi_lab.families.protocols import Model
from izwi_lab.runtime import load
from izwi_lab.runtime.batching import Batching
from izwi_lab.runtime.model_router import ModelRouter, Route
from izwi_lab.runtime.option_checks import check_engine, check_place, check_request
from izwi_lab.runtime.registry import Lease, ModelRegistry
from izwi_lab.runtime.request_token import RequestToken
from izwi_lab.runtime.script import Script, stamped
from izwi_lab.runtime.stream import Stream, read
from izwi_lab.runtime.tasks import CheckingModule, TaskModule, task_of
from izwi_lab.runtime.types import (
    PRIORITIES,
    GenerationRequest,
    GenerationResult,
    Limits,
    LoadedModel,
    ModelName,
    check_seed,
)
from izwi_lab.settings import Settings

_IDLE_TTL_S = 600.0
_AHEAD = 4  # pieces of audio, or segments, that work is ahead of its reader; text is small and goes on
_CACHE_BYTES = 1_000_000_000  # 8000 positions of a model of 0.6 billion parameters

Progress = Callable[[Any], None]


@dataclass(slots=True)
class Bound:
    """A request and the model it is bound to."""

    request: GenerationRequest
    token: RequestToken
    lease: Lease
    taken: bool = False


class EngineCore:
    """Models, requests and streams; see InferenceEngine for the arguments."""

    def __init__(
        self,
        models_dir: str | Path | None = None,
        *,
        backend: str = "auto",
        device: str | None = None,
        dtype: str | None = None,
        memory_budget_bytes: int | None = None,
        idle_ttl_s: float | Literal["auto"] | None = "auto",
        prompt_cache_bytes: int | None = None,
        config: Settings | None = None,
        limits: Limits | None = None,
        load_format: str = "auto",
        batching: LaneOptions | None = None,
        queue: QueueLimits | None = None,
    ) -> None:
        load.check_load_format(load_format)
        check_engine(
            config=config, limits=limits, batching=batching, queue=queue, models_dir=models_dir, backend=backend,
            device=device, dtype=dtype, idle_ttl_s=idle_ttl_s, memory_budget_bytes=memory_budget_bytes,
            prompt_cache_bytes=prompt_cache_bytes,
        )  # fmt: skip
        chosen = config if config is not None else settings.load()
        ttl = idle_ttl_s if idle_ttl_s != "auto" else chosen.idle_ttl_s
        kept = chosen.prompt_cache if prompt_cache_bytes is None else prompt_cache_bytes
        folder = models_dir or chosen.models_dir
        self.limits = limits or Limits()
        self._backend, self._device, self._dtype, self._load_format = backend, device, dtype, load_format
        cache_bytes = _CACHE_BYTES if kept is None else kept
        self._batching = Batching(batching, queue, cache_bytes=cache_bytes)
        self._registry = ModelRegistry(
            budget_bytes=chosen.memory_budget if memory_budget_bytes is None else memory_budget_bytes,
            idle_ttl_s=_IDLE_TTL_S if ttl is None and idle_ttl_s == "auto" else ttl,
            cache_bytes=cache_bytes,
            caches=self._batching.nbytes,
            closing=self._batching.drop,
        )
        self._router = ModelRouter(config, models_dir=Path(folder) if folder else None, in_memory=self._registry.holds)
        self._process = os.getpid()
        weakref.finalize(self, _abandoned, self._registry, self._batching, self._process)
        self._guard = threading.Lock()
        self._closed = False
        self._tokens: weakref.WeakSet[RequestToken] = weakref.WeakSet()
        self._streams: weakref.WeakSet[Stream[Any]] = weakref.WeakSet()

    # models

    def load(
        self,
        model: ModelName,
        *,
        backend: str | None = None,
        device: str | None = None,
        dtype: str | None = None,
        download: bool = True,
        progress: Progress | None = None,
        cancel: CancelToken | None = None,
    ) -> LoadedModel:
        """Have a model in memory before it is needed. It counts as idle from then on.

        Raises UnknownModelError, NotDownloadedError, BackendUnavailableError, MemoryBudgetError.
        """
        route = self._route(model, None, backend, device, dtype)
        token = self._token(cancel, None)
        with self._acquire(route, token, download=download, progress=progress):
            return replace(self._registry.describe(route.key), in_use=0)

    def unload(self, model: ModelName, *, wait: bool = True, timeout_s: float | None = 30.0) -> bool:
        """Drop a model. True when none of it is in memory any more, also when it was never loaded.

        Requests under way keep it until they end; wait=True waits for them up to timeout_s.
        """
        self._check_process()
        return self._registry.unload(self._router.source(model), wait=wait, timeout_s=timeout_s)

    def loaded(self) -> tuple[LoadedModel, ...]:
        """The models in memory, most recently used first."""
        self._check_process()
        return self._registry.loaded()

    def plan(
        self,
        model: ModelName,
        *,
        backend: str | None = None,
        device: str | None = None,
        dtype: str | None = None,
    ) -> BackendPlan:
        """Where a model would run and why, without loading it; for one that is in memory, where it runs."""
        return self._route(model, None, backend, device, dtype).plan

    @contextmanager
    def use(
        self,
        model: ModelName,
        *,
        backend: str | None = None,
        device: str | None = None,
        dtype: str | None = None,
        download: bool = True,
    ) -> Iterator[Model]:
        """Hold the family model itself, to take its steps by hand; it is not dropped inside the block.

        Take all steps of one session on one thread.
        """
        route = self._route(model, None, backend, device, dtype)
        with self._acquire(route, self._token(None, None), download=download, progress=None) as lease:
            yield lease.model

    # requests

    def run(self, request: GenerationRequest) -> GenerationResult:
        """Answer a request of any task. Raises InvalidInputError before any model is loaded, Cancelled at a stop."""
        task = task_of(request)
        with self._begin(request, task) as bound:
            model = bound.lease.model
            script, outbox = self._start(bound, task, whole=True)
            result = script.gather(read(outbox, bound.token), outbox.started_s)
            return stamped(result, model, outbox)

    def stream(self, request: GenerationRequest) -> Stream[Any]:
        """Answer a request piece by piece. The model is bound and in memory when this returns, and the work queued."""
        task = task_of(request)
        with self._begin(request, task) as bound:
            model = bound.lease.model
            _, outbox = self._start(bound, task, whole=False)
            stream: Stream[Any] = Stream(
                outbox,
                token=bound.token,
                model=model.variant.id,
                backend=model.plan.backend,
                measure=task.measure,
                engine=self,
            )
        with self._guard:
            self._streams.add(stream)
            closed = self._closed
        if closed:
            stream.close()
        return stream

    def _start(self, bound: Bound, task: TaskModule, *, whole: bool) -> tuple[Script, Outbox]:
        """Queue the work; the lease is let go when it ends."""
        request, token, lease = bound.request, bound.token, bound.lease
        token.check()
        script = task.script(lease, request, token, whole=whole)
        outbox = self._batching.start(
            lease.key,
            lease.model,
            script.course,
            token,
            id=request.id,
            tenant=request.tenant,
            priority=PRIORITIES[request.priority],
            audio_s=script.audio_s,
            ahead=None if whole or task.TASK is Task.CHAT else _AHEAD,
            on_end=lease.release,
        )
        bound.taken = True
        return script, outbox

    # looking

    @property
    def metrics(self) -> EngineMetrics:
        """What the engine counts and times; `metrics.text()` is in Prometheus' format."""
        return self._batching.metrics

    def explain(
        self, model: ModelName, *, backend: str | None = None, device: str | None = None, dtype: str | None = None
    ) -> Explanation:
        """What ran in each step of a model in memory: steps, blocks, and what later prompts would find.

        backend, device, dtype: which, where the model is in memory more than once, as a request would name it.

        >>> engine.explain("SmolLM2-135M-Instruct")          # doctest: +SKIP
        """
        self._check_process()
        if self._closed:
            raise IzwiError("The engine is closed, and what it knew is gone.", hint="Ask before close().")
        named = (backend, device, dtype) != (None, None, None)
        keys = self._registry.keys(self._router.source(model))
        for key in (self._route(model, None, backend, device, dtype).key,) if named else keys:
            found = self._batching.explain(key)
            if found is not None:
                return found
        raise InvalidInputError(
            f"No request has run on {model} since it was loaded.", hint="Ask it something first; loaded() lists models."
        )

    @contextmanager
    def _begin(self, request: GenerationRequest, task: CheckingModule) -> Iterator[Bound]:
        """Check, route and bind. The lease is let go at the end unless the job was told to hand it on."""
        token = self._token(request.cancel, request.timeout_s)
        check_seed(request.seed)
        check_request(request)
        request = task.check(request, self.limits)
        route = self._route(request.model, task.TASK, request.backend, request.device, request.dtype)
        # What a catalog's variant is known not to do is not fetched for; a folder's own config says it at its load.
        if route.folder is None and (fits := getattr(task, "fits", None)) is not None:
            fits(request, route.variant)
        lease = self._acquire(route, token, download=request.download, progress=request.progress)
        bound = Bound(request, token, lease)
        try:
            yield bound
        except BaseException:
            token.cancel()
            raise
        finally:
            if not bound.taken:
                lease.release()

    def _token(self, cancel: CancelToken | None, timeout_s: float | None) -> RequestToken:
        self._check_process()
        token = RequestToken(cancel, timeout_s=timeout_s)
        with self._guard:
            self._tokens.add(token)
            if self._closed:
                raise IzwiError("The engine is closed.", hint="Make a new InferenceEngine.")
        return token

    def _check_process(self) -> None:
        """Comes before any lock: a thread that is not in a forked child may have held it at the fork."""
        if os.getpid() != self._process:
            raise IzwiError(
                "This engine belongs to the process that this one was forked from; its threads are not here.",
                hint='Start processes with multiprocessing.get_context("spawn").',
            )

    def _route(
        self, model: ModelName | None, task: Task | None, backend: str | None, device: str | None, dtype: str | None
    ) -> Route:
        self._check_process()
        check_place(backend=backend, device=device, dtype=dtype)
        chosen = backend or self._backend
        return self._router.route(
            model,
            task=task,
            backend=None if chosen == "auto" else chosen,
            device=device or self._device,
            dtype=dtype or self._dtype,
            load_format=self._load_format,
        )

    def _acquire(self, route: Route, token: RequestToken, *, download: bool, progress: Progress | None) -> Lease:
        # Fetching comes before the registry makes room: a long download must not keep another model out of memory.
        local = None
        if not self._registry.holds(route.key):
            local = self._router.obtain(route, download=download, progress=progress, cancel=token)

        def build() -> Model:
            files = local or self._router.obtain(route, download=download, progress=progress, cancel=token)
            backend = load.backend_for(route.plan)
            return self._batching.call(
                backend, lambda: load.build(route.variant, files, route.plan, load_format=route.key.load_format), token
            )

        return self._registry.acquire(
            route.key,
            route.variant,
            build,
            estimate_bytes=route.plan.memory_bytes or route.variant.size_bytes,
            token=token,
        )

    # the end

    @property
    def closed(self) -> bool:
        """True once close() was called."""
        return self._closed

    def close(self) -> None:
        """Stop every request and stream, drop every model, end the threads. More than once does nothing.

        In a forked child it only says that it is closed: models and threads are the parent's.
        """
        if os.getpid() != self._process:
            self._closed = True
            return
        with self._guard:
            self._closed = True
            tokens, streams = list(self._tokens), list(self._streams)
        for token in tokens:
            token.cancel()
        for stream in streams:
            stream.close()
        self._registry.close()
        self._batching.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.close()


def _abandoned(registry: ModelRegistry, batching: Batching, process: int) -> None:
    """What is left of an engine that nobody closed: no thread, and no model. A forked child leaves them alone."""
    if os.getpid() == process:
        registry.close(timeout_s=0.0)
        batching.close()
