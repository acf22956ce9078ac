"""Taps: every intermediate of a net has one stable name, readable and replaceable, equal on both backends.

A net calls `x = tap("layers.3.attn", x)`. Outside a `with tapping(...)` block this costs one attribute read.
"""

from __future__ import annotations

import fnmatch
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np

from izwi_lab.errors import InvalidInputError

Replace = Callable[[str, np.ndarray], np.ndarray | None]


class Taps(dict[str, np.ndarray]):
    """What the open taps saw, by name, in the order it was computed. A name seen again holds the last value.

    `history[name]` keeps every value seen, one per step.
    """

    def __init__(
        self,
        patterns: Sequence[str],
        numpy: Callable[[Any], np.ndarray],
        array: Callable[[np.ndarray, Any], Any],
        replace: Replace | None,
    ) -> None:
        super().__init__()
        self.history: dict[str, list[np.ndarray]] = {}
        self._patterns, self._numpy, self._array, self._replace = tuple(patterns), numpy, array, replace

    def __missing__(self, name: str) -> np.ndarray:
        seen = ", ".join(list(self)[:20]) + (" …" if len(self) > 20 else "")
        raise KeyError(f"{name}: not seen. {'Seen: ' + seen if self else 'Nothing was yet, or no name matched.'}")

    def wants(self, name: str) -> bool:
        """True if a pattern matches."""
        return any(fnmatch.fnmatchcase(name, p) for p in self._patterns)

    def see(self, name: str, value: Any) -> Any:
        """Record `value` if a pattern matches and return it, or what `replace` gives instead."""
        if not self.wants(name):
            return value
        host = np.array(self._numpy(value))
        if self._replace is not None and (other := self._replace(name, host)) is not None:
            if other.shape != host.shape:
                raise InvalidInputError(f"tap {name}: the replacement has shape {other.shape}, expected {host.shape}.")
            host, value = other, self._array(other, value)
        self[name] = host
        self.history.setdefault(name, []).append(host)
        return value


class _Open(threading.local):
    taps: Taps | None = None
    prefix: str = ""


_open = _Open()


def tap(name: str, value: Any) -> Any:
    """Offer an intermediate under its stable name. Returns it, or its replacement."""
    taps = _open.taps
    return value if taps is None else taps.see(_open.prefix + name, value)


@contextmanager
def named_under(prefix: str) -> Iterator[None]:
    """Put `prefix` before the names of what is computed inside: a net made of several decoders tells them apart."""
    before = _open.prefix
    _open.prefix = before + prefix
    try:
        yield
    finally:
        _open.prefix = before


def tapped() -> bool:
    """True while a tap is open on this thread: fused paths that hide intermediates must step aside."""
    return _open.taps is not None


def wanted(name: str) -> bool:
    """True while a tap for `name` is open: what only a reader needs is computed then."""
    taps = _open.taps
    return taps is not None and taps.wants(_open.prefix + name)


@contextmanager
def tapping(
    patterns: str | Sequence[str],
    *,
    numpy: Callable[[Any], np.ndarray],
    array: Callable[[np.ndarray, Any], Any],
    replace: Replace | None = None,
) -> Iterator[Taps]:
    """Open taps on this thread for the names that match `patterns` (shell-style globs)."""
    if _open.taps is not None:
        raise InvalidInputError("Taps are already open on this thread.", hint="Use one `with` with several patterns.")
    named = [patterns] if isinstance(patterns, str) else patterns
    if not isinstance(named, Sequence) or not all(isinstance(p, str) for p in named):
        raise InvalidInputError(f"A tap is a name or several, got {patterns!r:.80}.", hint='Such as "layers.*.attn".')
    taps = Taps(named, numpy, array, replace)
    _open.taps = taps
    try:
        yield taps
    finally:
        _open.taps = None
