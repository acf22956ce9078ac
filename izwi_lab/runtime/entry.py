"""Entry: one model in the registry, from the moment it is asked for until it is gone."""

from __future__ import annotations

import logging
from collections.abc import Iterable
from dataclasses import dataclass
from enum import Enum
from typing import TYPE_CHECKING

from izwi_lab.errors import MemoryBudgetError
from izwi_lab.families.shared.prompt_cache import PromptCache
from izwi_lab.runtime.types import LoadedModel

if TYPE_CHECKING:
    from izwi_lab.catalog.variant import ModelVariant
    from izwi_lab.families.protocols import Model

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class ModelKey:
    """One model on one device in one form: what is loaded once. source: the catalog id, or the folder of a model."""

    source: str
    backend: str
    device: str
    dtype: str
    quantisation: str = "none"
    load_format: str = "auto"


class State(Enum):
    """LOADING -> READY -> CLOSING -> GONE; a failed load goes from LOADING to GONE."""

    LOADING = "loading"
    READY = "ready"
    CLOSING = "closing"
    GONE = "gone"


class Entry:
    """What the registry knows of one model; changed only under the registry's lock.

    refs: leases out; leaving: to be dropped with the last of them; used_s: when the last one ended, by its clock.
    nbytes: of the weights; cache: what its conversations left for their next turn.
    """

    def __init__(self, key: ModelKey, variant: ModelVariant, nbytes: int, now_s: float, cache_bytes: int = 0) -> None:
        self.key, self.variant, self.nbytes = key, variant, nbytes
        self.cache = PromptCache(cache_bytes)
        self.state = State.LOADING
        self.model: Model | None = None
        self.error: BaseException | None = None
        self.refs = 0
        self.leaving = False
        self.used_s = now_s

    @property
    def idle(self) -> bool:
        """In memory and not in use."""
        return self.state is State.READY and not self.refs

    def describe(self, now_s: float, elsewhere_bytes: int = 0) -> LoadedModel:
        """The entry as users see it. elsewhere_bytes: of caches that are not here."""
        cache_bytes = self.cache.nbytes + elsewhere_bytes
        return LoadedModel(
            id=self.variant.id,
            tasks=self.variant.tasks,
            backend=self.key.backend,
            device=self.key.device,
            dtype=self.key.dtype,
            nbytes=self.nbytes + cache_bytes,
            cache_bytes=cache_bytes,
            in_use=self.refs,
            idle_s=0.0 if self.refs else max(0.0, now_s - self.used_s),
            leaving=self.leaving,
        )

    def close_model(self) -> None:
        """Close the model if there is one and let go of it; an error in that is logged, not raised."""
        model, self.model = self.model, None
        self.cache.close()
        if model is None:
            return
        try:
            model.close()
        except Exception:
            _log.exception("closing %s failed; its memory is freed with its last reference", self.variant.id)


def over_budget(entry: Entry, held: Iterable[Entry], budget_bytes: int) -> MemoryBudgetError:
    """The error for a model that does not fit beside those that cannot be dropped."""
    rows = [f"{e.variant.id} ({e.nbytes / 1e6:.0f} MB, {'in use' if e.refs else 'loading'})" for e in held]
    return MemoryBudgetError(
        f"{entry.variant.id} needs {entry.nbytes / 1e6:.0f} MB of the {budget_bytes / 1e6:.0f} MB allowed for models; "
        f"in use now: {', '.join(rows) or 'nothing'}.",
        hint="Wait for the requests that use them, or give the engine a larger memory_budget_bytes.",
    )
