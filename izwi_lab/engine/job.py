"""Job: one request under way in an engine: its course, what it asks for next, and where its answer goes."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from izwi_lab.cancel import CancelToken
from izwi_lab.engine.admission import Ticket
from izwi_lab.engine.outbox import Outbox
from izwi_lab.engine.request import FinishReason, Priority, Sequence

if TYPE_CHECKING:
    from izwi_lab.families.shared.course import Ask, Course

_log = logging.getLogger(__name__)


@dataclass(slots=True, eq=False)
class Job:
    """What the engine knows of a request; only the device's thread changes it.

    id: unique among those under way; token: says when to stop; on_end: called once when nothing of it runs any more,
    before its reader is told. ask: what it waits for. sequence: of its last Prefill, while that goes on. audio_s:
    seconds of audio that it made, or hears; work_s: of the steps that it took part in; turn_s: when it asked last for
    something beside the passes. reason: how its last sequence ended.
    """

    id: str
    course: Course
    token: CancelToken
    outbox: Outbox
    tenant: str = ""
    priority: Priority = Priority.NORMAL
    on_end: Callable[[], None] = lambda: None
    ticket: Ticket | None = None
    ask: Ask | None = None
    sequence: Sequence | None = None
    prefills: int = 0
    audio_s: float = 0.0
    work_s: float = 0.0
    turn_s: float = 0.0
    reason: FinishReason | None = None

    def end(self, error: Exception | None) -> None:
        """Nothing of it runs any more: what it held is let go, then its reader is told."""
        try:
            self.on_end()
        except Exception:
            _log.exception("what request %s held was not let go", self.id)
        finally:
            self.outbox.end(error)
