"""The progress of a download: a bar on a terminal, a few plain lines anywhere else."""

from __future__ import annotations

import shutil
import sys
import threading
import time
from types import TracebackType
from typing import TYPE_CHECKING, Self, TextIO

from izwi_lab.cli import console

if TYPE_CHECKING:
    from izwi_lab.artifacts.progress import Progress

_REDRAW_S = 0.1
_LINE_STEP = 0.25  # without a terminal: one line each time this much more is done
_BAR_CHARS = 24


class ProgressView:
    """Call it with each Progress of a fetch; leave the `with` block to end the line.

    >>> with ProgressView("Whisper-base") as view:            # doctest: +SKIP
    ...     artifacts.fetch(variant, progress=view)
    """

    def __init__(self, label: str, stream: TextIO | None = None) -> None:
        self.label = label
        self.stream = sys.stderr if stream is None else stream
        self.live = self.stream.isatty()
        self._lock = threading.Lock()
        self._drawn_at = 0.0
        self._state = ""
        self._announced = -1.0
        self._open = False

    def __call__(self, progress: Progress) -> None:
        """Show one reading; from any thread."""
        with self._lock:
            if self.live:
                self._redraw(progress)
            else:
                self._announce(progress)

    def _redraw(self, progress: Progress) -> None:
        now = time.monotonic()
        changed = progress.state != self._state or progress.fraction >= 1
        if not changed and now - self._drawn_at < _REDRAW_S:
            return
        self._drawn_at, self._state = now, progress.state
        width = shutil.get_terminal_size().columns - 1
        self.stream.write("\r" + bar(self.label, progress)[:width].ljust(width))
        self.stream.flush()
        self._open = True

    def _announce(self, progress: Progress) -> None:
        changed = progress.state != self._state
        if not changed and progress.fraction < self._announced + _LINE_STEP:
            return
        self._state = progress.state
        self._announced = progress.fraction // _LINE_STEP * _LINE_STEP
        self.stream.write(line(self.label, progress) + "\n")
        self.stream.flush()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with self._lock:
            if self._open:
                self.stream.write("\n")
                self.stream.flush()
                self._open = False


def bar(label: str, progress: Progress) -> str:
    """One line: bar, bytes, rate, time left."""
    full = round(_BAR_CHARS * progress.fraction)
    return f"{label}  [{'#' * full}{'.' * (_BAR_CHARS - full)}]  {_figures(progress)}"


def line(label: str, progress: Progress) -> str:
    """One line without a bar."""
    return f"{label}: {progress.state!s}, {_figures(progress)}"


def _figures(progress: Progress) -> str:
    parts = [f"{100 * progress.fraction:3.0f} %"]
    if progress.bytes_total:
        parts.append(f"{console.size(progress.bytes_done)} of {console.size(progress.bytes_total)}")
    if progress.rate_bytes_s:
        parts.append(f"{console.size(round(progress.rate_bytes_s))}/s")
    if progress.eta_s is not None:
        parts.append(f"{console.clock(progress.eta_s)} left")
    return ", ".join(parts)
