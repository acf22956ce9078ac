"""Playing sound from a terminal, through whichever player the system has."""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Self

from izwi_lab.errors import IzwiError

if TYPE_CHECKING:
    from izwi_lab.audio import Audio

# Players that take raw 16-bit samples on standard input, so that they start with the first piece.
_PIPED = (
    ("pw-play", "--format=s16", "--rate={rate}", "--channels=1", "--raw", "-"),
    ("paplay", "--raw", "--format=s16le", "--rate={rate}", "--channels=1"),
    ("aplay", "-q", "-t", "raw", "-f", "S16_LE", "-r", "{rate}", "-c", "1", "-"),
    ("ffplay", "-loglevel", "error", "-nodisp", "-autoexit", "-f", "s16le", "-ar", "{rate}", "-i", "-"),
    ("play", "-q", "-t", "raw", "-r", "{rate}", "-e", "signed", "-b", "16", "-c", "1", "-"),
)
_FROM_FILE = (("afplay", "{file}"),)  # macOS has no player that reads a pipe


class Playback:
    """Plays pieces as they are written; leaving the block waits until the last one is heard.

    Raises:
        IzwiError: no player was found, or the player failed.
    """

    def __init__(self, rate_hz: int) -> None:
        self.rate_hz = rate_hz
        self._process: subprocess.Popen[bytes] | None = None
        self._pieces: list[Audio] = []
        self._template = _player()
        if self._template in _PIPED:
            argv = [part.format(rate=rate_hz) for part in self._template]
            self._process = subprocess.Popen(argv, stdin=subprocess.PIPE, stderr=subprocess.PIPE)

    def write(self, audio: Audio) -> None:
        """Play a piece, or keep it until the end where the player needs a file."""
        if self._process is None or self._process.stdin is None:
            self._pieces.append(audio)
            return
        try:
            self._process.stdin.write(audio.encode("pcm"))
            self._process.stdin.flush()
        except BrokenPipeError:
            raise self._failure() from None

    def close(self) -> None:
        """Wait for the end of the sound."""
        if self._process is not None:
            _, errors = self._process.communicate()
            if self._process.returncode:
                raise self._failure(errors)
        elif self._pieces:
            self._play_file()

    def _play_file(self) -> None:
        from izwi_lab.audio import Audio

        with tempfile.TemporaryDirectory() as folder:
            path = Audio.concat(self._pieces).save(Path(folder) / "speech.wav")
            argv = [part.format(file=path) for part in self._template]
            if subprocess.run(argv, check=False).returncode:
                raise self._failure()

    def _failure(self, errors: bytes = b"") -> IzwiError:
        if self._process is not None and not errors and self._process.stderr is not None:
            errors = self._process.stderr.read()
        why = errors.decode("utf-8", "replace").strip().splitlines()
        return IzwiError(
            f"The player {self._template[0]!r} failed{': ' + why[-1] if why else ''}.",
            hint="Check the sound device, or write a file with -o.",
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None:
            self.close()
        elif self._process is not None:
            self._process.kill()
            self._process.communicate()


def check_player() -> None:
    """Raise IzwiError now, before any work, when nothing here can play sound."""
    _player()


def _player() -> tuple[str, ...]:
    for template in (*_FROM_FILE, *_PIPED) if sys.platform == "darwin" else _PIPED:
        if shutil.which(template[0]):
            return template
    names = ", ".join(template[0] for template in (*_PIPED, *_FROM_FILE))
    raise IzwiError(f"No sound player was found (looked for {names}).", hint="Install one, or write a file with -o.")
