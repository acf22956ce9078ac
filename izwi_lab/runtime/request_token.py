"""RequestToken: what the work of one request checks: the caller's token, the deadline and the stream's own close."""

from __future__ import annotations

from izwi_lab.cancel import CancelToken, check_cancel


class RequestToken(CancelToken):
    """Stops when `outer` is cancelled, when `timeout_s` seconds have passed, or when its own `cancel()` is called.

    Cancelling it leaves `outer` alone: one caller's token may cover many requests.
    """

    def __init__(self, outer: CancelToken | None = None, *, timeout_s: float | None = None) -> None:
        check_cancel(outer)
        super().__init__(timeout_s=timeout_s)
        self._outer = outer

    @property
    def cancelled(self) -> bool:
        """True once any of the three says stop."""
        return super().cancelled or (self._outer is not None and self._outer.cancelled)

    @property
    def late(self) -> bool:
        """True if it, or the caller's token, is past its deadline."""
        return super().late or (self._outer is not None and self._outer.late)

    def check(self) -> None:
        """Raise Cancelled if the work should stop."""
        super().check()
        if self._outer is not None:
            self._outer.check()
