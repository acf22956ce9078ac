"""Pool: the arrays behind a model's blocks, as many as the block manager has.

Where a device gives memory when it is asked for, they grow as blocks are given out; where it gives it when it is
written to, they are as large as they will ever be from the beginning.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from izwi_lab.backends.memory import is_out_of_memory
from izwi_lab.engine.tables import BlockCopy

if TYPE_CHECKING:
    from izwi_lab.families.protocols import BatchModel
    from izwi_lab.families.shared.steps import Session

_FIRST = 64  # blocks to begin with


class Pool:
    """Blocks of `block` positions for a model. limit: as many as there will ever be."""

    def __init__(self, model: BatchModel, limit: int, block: int) -> None:
        self._model, self.limit, self.block = model, limit, block
        self.blocks = 0  # that there are arrays for
        self._touched = 0  # blocks up to the highest that was ever given out
        self.stuck = False  # the device has no memory for more
        self._arrays: dict[str, list[Any]] = {}
        self._tables: dict[Session, list[int]] = {}

    @property
    def nbytes(self) -> int:
        """Bytes of memory taken."""
        blocks = self._touched if self._model.backend.late_pools else self.blocks
        return blocks * self.block * self._model.position_bytes

    def give(self, session: Session, ids: list[int]) -> None:
        """Let a session's positions lie in these blocks."""
        if self._tables.get(session) == ids:
            return
        self._grow(max(ids) + 1)
        state = self._model.caches(session)
        if session not in self._tables:
            state.update(self._arrays)
            state["conv"] = [None] * len(next(iter(self._arrays.values())))
            state["block"] = self.block
        state["blocks"] = self._model.backend.array(np.asarray(ids, np.int32))
        self._tables[session] = list(ids)

    def forget(self, session: Session) -> None:
        """A session is over, or gave its blocks up."""
        self._tables.pop(session, None)

    def copy(self, copies: tuple[BlockCopy, ...]) -> None:
        """Copy whole blocks."""
        for each in copies:
            self._grow(max(each.source, each.target) + 1)
            source, target = (slice(n * self.block, (n + 1) * self.block) for n in (each.source, each.target))
            with self._model.backend.inference():
                for array in (a for arrays in self._arrays.values() for a in arrays if a is not None):
                    array[:, :, target] = array[:, :, source]

    def _fresh(self, sizes: tuple[int, ...]) -> tuple[int, dict[str, list[Any]]]:
        """Arrays of the first of these sizes that there is memory for."""
        for size in sizes:
            try:
                return size, self._model.pool(size, self.block)
            except Exception as error:
                if not is_out_of_memory(error):
                    raise
                self.stuck = size == sizes[-1]
                if self.stuck:
                    raise
        raise AssertionError("no size was asked for")

    def _grow(self, needed: int) -> None:
        """Sessions hold the lists, whose arrays are replaced by longer ones."""
        if needed > self.blocks:
            self._make(needed)
        self._touched = max(self._touched, needed)

    def _make(self, needed: int) -> None:
        some = min(self.limit, max(needed, self.blocks + self.blocks // 2, _FIRST))
        size, fresh = self._fresh((self.limit, some, needed) if self._model.backend.late_pools else (some, needed))
        held = self.blocks * self.block
        with self._model.backend.inference():
            for name, arrays in fresh.items():
                lists = self._arrays.setdefault(name, [None] * len(arrays))
                for layer, array in enumerate(arrays):
                    if array is not None and held:
                        array[:, :, :held] = lists[layer]
                    lists[layer] = array
            self._model.backend.evaluate(self._arrays)  # else the shorter ones live on until somebody looks
        self.blocks = size
