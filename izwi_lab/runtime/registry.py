"""ModelRegistry: the models in memory. Each is loaded once, counted while in use, and dropped when idle or in the way.

After speaches' SelfDisposingModel (reference count and idle timer), with a byte budget for all models together.
"""

from __future__ import annotations

import gc
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable
from types import TracebackType
from typing import TYPE_CHECKING

from izwi_lab.cancel import CancelToken
from izwi_lab.errors import Cancelled, InvalidInputError, IzwiError
from izwi_lab.families.shared.prompt_cache import PromptCache
from izwi_lab.runtime.entry import Entry, ModelKey, State, over_budget
from izwi_lab.runtime.types import LoadedModel

if TYPE_CHECKING:
    from izwi_lab.catalog.variant import ModelVariant
    from izwi_lab.families.protocols import Model

_POLL_S = 0.1  # how soon a waiting thread sees its token; wake-ups themselves are immediate
_TICK_S = 5.0  # how soon leases that were lost without release are counted


class Lease:
    """A hold on a loaded model: while it lasts the model is not dropped. Release it, or use it in `with`."""

    def __init__(self, registry: ModelRegistry, entry: Entry) -> None:
        self._registry = registry
        self._entry: Entry | None = entry
        self.variant = entry.variant
        self._model = entry.model
        self.cache, self.key = entry.cache, entry.key

    @property
    def model(self) -> Model:
        """The family model this lease is bound to."""
        if self._model is None:
            raise IzwiError("The lease on this model was released.", hint="Take a new one.")
        return self._model

    def release(self) -> None:
        """Let the model go; more than once does nothing."""
        entry, self._entry, self._model = self._entry, None, None
        if entry is not None:
            self._registry._release(entry)

    def __enter__(self) -> Lease:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.release()

    def __del__(self) -> None:
        # The collector may run inside the registry's own lock, so a lost lease is only noted here.
        if getattr(self, "_entry", None) is not None:
            self._registry._lost.append(self._entry)


class ModelRegistry:
    """Models by key, shared by all threads.

    budget_bytes: for all models together, None for no limit; idle ones are dropped, least recently used first, before
    another is loaded. idle_ttl_s: seconds an idle model stays: 0 drops it at once, None keeps it. clock: monotonic
    seconds. cache_bytes: what each model may keep of its conversations, besides the budget. caches: bytes of what is
    kept for a model elsewhere; closing: called with a model's key before it is dropped.
    """

    def __init__(
        self,
        *,
        budget_bytes: int | None = None,
        idle_ttl_s: float | None = None,
        cache_bytes: int = 0,
        clock: Callable[[], float] = time.monotonic,
        caches: Callable[[ModelKey], int] = lambda _: 0,
        closing: Callable[[ModelKey], None] = lambda _: None,
    ) -> None:
        if budget_bytes is not None and budget_bytes <= 0:
            raise InvalidInputError(f"memory_budget_bytes must be above 0, got {budget_bytes}.", hint="None: no limit.")
        if idle_ttl_s is not None and not idle_ttl_s >= 0:
            raise InvalidInputError(f"idle_ttl_s must be 0 or more, got {idle_ttl_s}.", hint="None keeps idle models.")
        PromptCache(cache_bytes)  # a wrong size is an error now, not with the first model
        self._budget, self._ttl, self._clock, self._cache_bytes = budget_bytes, idle_ttl_s, clock, cache_bytes
        self._caches, self._closing = caches, closing
        self._changed = threading.Condition()
        self._entries: dict[ModelKey, Entry] = {}
        self._measured: dict[ModelKey, int] = {}
        self._lost: deque[Entry | None] = deque()
        self._reaper: threading.Thread | None = None
        self._closed = False

    # taking a model

    def acquire(
        self,
        key: ModelKey,
        variant: ModelVariant,
        build: Callable[[], Model],
        *,
        estimate_bytes: int = 0,
        token: CancelToken | None = None,
    ) -> Lease:
        """Hold the model of `key`, calling `build` if it is not in memory and nobody is loading it yet.

        A failed load raises in every thread that waited for it and is forgotten: the next call tries again. Where
        the loading caller gave up, one that waited takes over. Raises MemoryBudgetError, Cancelled.
        """
        token = token or CancelToken()
        self._settle_lost()
        while True:
            with self._changed:
                self._check_open()
                entry = self._entries.get(key)
                if entry is None:
                    entry, victims = self._reserve(key, variant, estimate_bytes)
                    break
                if entry.state is State.READY:
                    entry.refs += 1
                    return Lease(self, entry)
                while entry.state in (State.LOADING, State.CLOSING) and self._entries.get(key) is entry:
                    token.check()
                    self._changed.wait(_POLL_S)
                failed = entry.error
            if isinstance(failed, Exception) and not isinstance(failed, Cancelled):
                raise failed
        return self._load(entry, victims, build, token)

    def _reserve(self, key: ModelKey, variant: ModelVariant, estimate_bytes: int) -> tuple[Entry, list[Entry]]:
        nbytes = self._measured.get(key, estimate_bytes)
        entry = Entry(key, variant, nbytes, self._clock(), self._cache_bytes)
        victims = self._victims_for(entry)
        for victim in victims:
            victim.state = State.CLOSING
        self._entries[key] = entry
        return entry, victims

    def _victims_for(self, entry: Entry) -> list[Entry]:
        """The idle models to drop, oldest first, so that `entry` fits; raises if dropping all is not enough."""
        if self._budget is None:
            return []
        others = [e for e in self._entries.values() if e is not entry]
        idle = sorted((e for e in others if e.idle), key=lambda e: e.used_s)
        held = [e for e in others if not e.idle and e.state is not State.CLOSING]
        if entry.nbytes + sum(e.nbytes for e in held) > self._budget:
            raise over_budget(entry, held, self._budget)
        total = entry.nbytes + sum(e.nbytes for e in held + idle)
        victims = []
        for candidate in idle:
            if total <= self._budget:
                break
            victims.append(candidate)
            total -= candidate.nbytes
        return victims

    def _load(self, entry: Entry, victims: list[Entry], build: Callable[[], Model], token: CancelToken) -> Lease:
        try:
            self._drop(victims)
            self._await_room(token)
            token.check()
            entry.model = build()
            over = self._accept(entry)
        except BaseException as error:
            entry.error = error
            entry.close_model()
            self._forget(entry)
            raise
        self._drop(over)
        return Lease(self, entry)

    def _accept(self, entry: Entry) -> list[Entry]:
        """The loaded model becomes visible, at its real size. Returns what must leave because that is larger."""
        assert entry.model is not None
        with self._changed:
            self._check_open()
            self._measured[entry.key] = entry.nbytes = int(entry.model.nbytes)
            victims = self._victims_for(entry)
            for victim in victims:
                victim.state = State.CLOSING
            entry.state, entry.refs, entry.used_s = State.READY, 1, self._clock()
            self._changed.notify_all()
        return victims

    def _await_room(self, token: CancelToken) -> None:
        """Wait until models that others are dropping are gone, where the budget needs their room."""
        with self._changed:
            while self._budget is not None and sum(e.nbytes for e in self._entries.values()) > self._budget:
                if not any(e.state is State.CLOSING for e in self._entries.values()):
                    return
                token.check()
                self._changed.wait(_POLL_S)

    # letting a model go

    def _release(self, entry: Entry) -> None:
        with self._changed:
            entry.refs -= 1
            entry.used_s = self._clock()
            victims = [entry] if entry.idle and (entry.leaving or self._closed or self._ttl == 0) else []
            for victim in victims:
                victim.state = State.CLOSING
            self._changed.notify_all()
            self._start_reaper()
        self._drop(victims)

    def _settle_lost(self) -> None:
        while self._lost:
            try:
                entry = self._lost.popleft()
            except IndexError:
                return
            if entry is not None:
                self._release(entry)

    def _drop(self, victims: Iterable[Entry]) -> None:
        """Close models already marked CLOSING, outside the lock: it may take a while."""
        for entry in victims:
            try:
                self._closing(entry.key)
            finally:
                entry.close_model()
            gc.collect()  # nets hold reference cycles; their memory must be free before the next load
            self._forget(entry)

    def _forget(self, entry: Entry) -> None:
        with self._changed:
            entry.state = State.GONE
            if self._entries.get(entry.key) is entry:
                del self._entries[entry.key]
            self._changed.notify_all()

    def sweep(self) -> None:
        """Drop the models that have been idle for longer than idle_ttl_s. The timer calls this; tests may too."""
        self._settle_lost()
        with self._changed:
            now = self._clock()
            victims = [
                e for e in self._entries.values() if e.idle and self._ttl is not None and now - e.used_s >= self._ttl
            ]
            for victim in victims:
                victim.state = State.CLOSING
        self._drop(victims)

    def _start_reaper(self) -> None:
        if self._ttl and self._reaper is None and self._entries and not self._closed:
            self._reaper = threading.Thread(target=self._reap, name="izwi-idle-models", daemon=True)
            self._reaper.start()

    def _reap(self) -> None:
        """Sleep until the next model is due, sweep, and end when none is left."""
        while True:
            with self._changed:
                if self._closed or not self._entries:
                    self._reaper = None
                    return
                now, ttl = self._clock(), self._ttl or 0.0
                due = [ttl - (now - e.used_s) for e in self._entries.values() if e.idle]
                self._changed.wait(min([_TICK_S, *(max(0.001, d) for d in due)]))
            self.sweep()

    def unload(self, source: str, *, wait: bool = True, timeout_s: float | None = 30.0) -> bool:
        """Drop the models of `source`, on every device. Returns True when none of it is in memory any more.

        An idle one is dropped now. One in use is dropped when its last request ends: wait=True waits for that, up
        to timeout_s; wait=False returns at once.
        """
        self._settle_lost()
        ends = None if timeout_s is None else time.monotonic() + timeout_s
        with self._changed:
            found = [e for e in self._entries.values() if e.key.source == source]
            for entry in found:
                entry.leaving = True
            victims = [e for e in found if e.idle]
            for victim in victims:
                victim.state = State.CLOSING
        self._drop(victims)
        with self._changed:
            while any(e.state is not State.GONE for e in found):
                left = _POLL_S if ends is None else min(_POLL_S, ends - time.monotonic())
                if not wait or left <= 0:
                    return False
                self._changed.wait(left)
        return True

    def close(self, *, timeout_s: float = 30.0) -> None:
        """Take no more requests, wait for those under way, drop every model and stop the timer."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
            reaper = self._reaper
            sources = {e.key.source for e in self._entries.values()}
        for source in sources:
            self.unload(source, timeout_s=timeout_s)
        if reaper is not None and reaper is not threading.current_thread():
            reaper.join(timeout_s)

    # looking

    def holds(self, key: ModelKey) -> bool:
        """True while the model is in memory or being loaded."""
        with self._changed:
            return key in self._entries

    def loaded(self) -> tuple[LoadedModel, ...]:
        """The models in memory, most recently used first."""
        self._settle_lost()
        with self._changed:
            now = self._clock()
            ready = sorted((e for e in self._entries.values() if e.state is State.READY), key=lambda e: -e.used_s)
            return tuple(e.describe(now, self._caches(e.key)) for e in ready)

    def describe(self, key: ModelKey) -> LoadedModel:
        """The row of one model that is held."""
        with self._changed:
            return self._entries[key].describe(self._clock(), self._caches(key))

    def keys(self, source: str) -> tuple[ModelKey, ...]:
        """The keys under which a source is in memory."""
        with self._changed:
            return tuple(e.key for e in self._entries.values() if e.key.source == source and e.state is State.READY)

    def _check_open(self) -> None:
        if self._closed:
            raise IzwiError("The engine is closed.", hint="Make a new InferenceEngine.")
