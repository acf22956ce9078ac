"""CancelToken: how a caller stops work that is under way, from any thread."""

from __future__ import annotations

import threading
import time

from izwi_lab.errors import Cancelled, InvalidInputError


class CancelToken:
    """A flag with an optional deadline, timeout_s seconds from now. Loops over steps call `check()` once per step.

    >>> token = CancelToken()
    >>> token.cancel()
    >>> token.cancelled
    True
    """

    def __init__(self, *, timeout_s: float | None = None) -> None:
        number = isinstance(timeout_s, (int, float)) and not isinstance(timeout_s, bool)
        if timeout_s is not None and not (number and timeout_s > 0):
            raise InvalidInputError(f"timeout_s must be above 0, got {timeout_s!r:.80}.", hint="Use None for no limit.")
        self._event = threading.Event()
        self._deadline = None if timeout_s is None else time.monotonic() + timeout_s

    def cancel(self) -> None:
        """Ask the work to stop at its next step."""
        self._event.set()

    @property
    def cancelled(self) -> bool:
        """True once cancelled or past the deadline."""
        return self._event.is_set() or (self._deadline is not None and time.monotonic() > self._deadline)

    @property
    def late(self) -> bool:
        """True if it is past its deadline and nobody cancelled it."""
        return not self._event.is_set() and self._deadline is not None and time.monotonic() > self._deadline

    def check(self) -> None:
        """Raise Cancelled if the work should stop."""
        if self._event.is_set():
            raise Cancelled("The work was cancelled by its caller.")
        if self._deadline is not None and time.monotonic() > self._deadline:
            raise Cancelled("The work ran past its deadline.", hint="Give it a longer timeout_s.")


def check_cancel(cancel: object) -> None:
    """Raise InvalidInputError for what is neither None nor a CancelToken."""
    if cancel is not None and not isinstance(cancel, CancelToken):
        raise InvalidInputError(
            f"cancel must be a CancelToken or None, got {cancel!r:.80}.", hint="Make one: izwi.CancelToken()."
        )
