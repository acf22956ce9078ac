"""Sessions kept after their answers, so that the next turn of a conversation reads only what is new."""

from __future__ import annotations

import threading
import weakref
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from izwi_lab.errors import InvalidInputError

if TYPE_CHECKING:
    from izwi_lab.families.shared.steps import Session
    from izwi_lab.families.shared.text_model import TextModel

SLACK = 16  # ids at a prompt's end that the next turn may write otherwise (an emptied thought); reading so few is cheap


@dataclass(frozen=True, slots=True)
class _Parked:
    """A session nobody uses. ids: int32, those in its caches; prompt: how many of them were read, not said.

    tenant: whose it is; no other gets it.
    """

    model: weakref.ref[TextModel]
    session: Session
    ids: np.ndarray
    prompt: int
    nbytes: int
    tenant: str


class PromptCache:
    """Sessions by the model and the ids they hold. Safe to use from many threads.

    limit_bytes: for all sessions together; the least recently used go first. 0 keeps none.

    A session is in the cache or in use, never both: `take` removes it, or copies it where another conversation, which
    shares only its beginning, may come back for it.
    """

    def __init__(self, limit_bytes: int) -> None:
        if isinstance(limit_bytes, bool) or not isinstance(limit_bytes, int) or limit_bytes < 0:
            raise InvalidInputError(f"limit_bytes must be a whole number of 0 or more, got {limit_bytes!r}.")
        self.limit_bytes = limit_bytes
        self._lock = threading.Lock()
        self._parked: list[_Parked] = []  # least recently used first
        self._closed = False

    def __len__(self) -> int:
        return len(self._parked)

    def __repr__(self) -> str:
        return f"PromptCache({len(self)} sessions, {self.nbytes / 1e6:.1f} of {self.limit_bytes / 1e6:.0f} MB)"

    @property
    def nbytes(self) -> int:
        """Bytes of the sessions in it."""
        with self._lock:
            return sum(p.nbytes for p in self._parked)

    def take(
        self,
        model: TextModel,
        ids: np.ndarray,
        *,
        seed: int | None = None,
        max_tokens: int | None = None,
        tenant: str = "",
    ) -> Session:
        """A session that holds as many of the first of `ids` [T] as any here did, but not the last; else a new one.

        It holds `session.position` of them; prefill the rest. tenant: whose sessions are looked at.
        """
        session = model.session(seed=seed, max_tokens=max_tokens)
        with self._lock:
            best, count = None, 0
            for parked in (p for p in self._parked if p.model() is model and p.tenant == tenant):
                common = _common(parked.ids, ids[:-1])
                if common > count and model.config.rewindable(parked.session.reach, common):
                    best, count = parked, common
            if best is None or (count < min(best.prompt - SLACK, SLACK)):
                return session
            self._parked.remove(best)
            held = best.session
            if count < best.prompt - SLACK:  # only its beginning: the conversation it belongs to may go on
                held = held.fork()
                self._parked.append(best)
        session.state, session.position, session.reach = held.state, len(best.ids), held.reach
        session.prompt_ids, session.tokens = best.ids.tolist(), []
        session.trim(count)
        return session

    def park(self, model: TextModel, session: Session, *, tenant: str = "") -> None:
        """Keep a session of `model` that its user is done with, or drop it. It must not be used after that."""
        ids = np.asarray([*session.prompt_ids, *session.tokens][: session.position], np.int32)
        session.last = session.tally = None  # they hold arrays on the device
        new = _Parked(weakref.ref(model), session, ids, min(len(session.prompt_ids), len(ids)), session.nbytes, tenant)
        if not len(ids) or len(ids) != session.position or session.state.get("length") != len(ids):
            return  # never read, or not as its family left it
        with self._lock:
            if self._closed or new.nbytes > self.limit_bytes:
                return
            self._parked = [p for p in self._parked if not _replaces(model, new, p)] + [new]
            while sum(p.nbytes for p in self._parked) > self.limit_bytes:
                self._parked.pop(0)

    def park_prompt(self, model: TextModel, session: Session, *, tenant: str = "") -> None:
        """Keep a copy of a session that has read its prompt, where the answer could make it forget the prompt's end.

        Sliding windows and convolutions keep only the last positions, so that a session cannot always be rewound.
        """
        room = session.max_tokens if session.max_tokens is not None else model.config.max_positions
        ends = min(session.position + room, model.config.max_positions)
        if session.nbytes <= self.limit_bytes and not model.config.rewindable(ends, max(1, session.position - SLACK)):
            self.park(model, session.fork(), tenant=tenant)

    def clear(self) -> None:
        """Drop every session."""
        with self._lock:
            self._parked.clear()

    def close(self) -> None:
        """Drop every session, and those that are still in use once they are parked."""
        with self._lock:
            self._closed = True
            self._parked.clear()


def _replaces(model: TextModel, new: _Parked, old: _Parked) -> bool:
    """True if all that the old one could serve the new one can: it begins with it, and can go back to its end."""
    if old.model() is not model or old.tenant != new.tenant:
        return False
    if len(old.ids) > len(new.ids) or _common(old.ids, new.ids) < len(old.ids):
        return False
    both_prompts = len(new.ids) == new.prompt and len(old.ids) == old.prompt
    return both_prompts or model.config.rewindable(new.session.reach, len(old.ids))


def _common(left: np.ndarray, right: np.ndarray) -> int:
    size = min(len(left), len(right))
    different = left[:size] != right[:size]
    return int(different.argmax()) if different.any() else size
