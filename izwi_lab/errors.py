"""Every error that izwi_lab raises on purpose: one base, one class per thing a caller can do about it.

Messages say what was expected, what came, and what to do. `hint` is the last part on its own, for a server or a panel.
"""

from __future__ import annotations


class IzwiError(Exception):
    """Base of all errors raised on purpose by izwi_lab."""

    def __init__(self, message: str, *, hint: str = "") -> None:
        super().__init__(f"{message} {hint}".strip())
        self.hint = hint


class InvalidInputError(IzwiError, ValueError):
    """The caller's input cannot be honoured: empty text, unknown voice, NaN samples, a wrong option."""


class UnknownModelError(InvalidInputError):
    """No catalog variant goes by this name; `nearest` holds the closest ids."""

    def __init__(self, message: str, *, nearest: tuple[str, ...] = (), hint: str = "") -> None:
        super().__init__(message, hint=hint)
        self.nearest = nearest


class WrongTaskError(InvalidInputError):
    """The variant exists but does not do the task that was asked of it."""


class AudioError(InvalidInputError):
    """Audio that cannot be decoded, is empty, holds NaN, or is over a stated cap."""


class ArtifactError(IzwiError):
    """A checkpoint cannot be fetched, verified, opened or understood."""


class ChecksumError(ArtifactError):
    """The bytes that arrived are not the bytes that were pinned."""


class CheckpointError(ArtifactError):
    """A checkpoint file is truncated, hostile, or does not match the net it is loaded into."""


class UnreachableError(ArtifactError):
    """A hub or package registry cannot be reached from here."""


class NotDownloadedError(ArtifactError):
    """The model is known but its files are not on this machine."""


class BackendUnavailableError(IzwiError):
    """No backend can serve the request; the message lists each one with its reason."""


class MemoryBudgetError(IzwiError):
    """The models in use leave no room for another; the message lists them."""


class OutOfBlocksError(IzwiError):
    """The paged caches hold fewer free blocks or slots than a sequence needs; nothing was taken."""


class QueueFullError(IzwiError):
    """The engine takes no more requests for now; `retry_after_s` says when there should be room again."""

    def __init__(self, message: str, *, retry_after_s: float, hint: str = "") -> None:
        super().__init__(message, hint=hint)
        self.retry_after_s = retry_after_s


class MissingExtraError(IzwiError, ImportError):
    """An optional package is not installed; names the extra that brings it."""

    def __init__(self, package: str, extra: str) -> None:
        super().__init__(f"{package} is not installed.", hint=f"Run: pip install 'izwi-lab[{extra}]'")
        self.package, self.extra = package, extra


class Cancelled(IzwiError):
    """The work was stopped by its CancelToken or its deadline; nothing after this point was computed."""
