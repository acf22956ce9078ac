"""Kokoro's voices: tables of style vectors on disk, one row per phoneme count, and blends of them.

A voice is [510, 1, 256] float32, `voices/<name>.bin` (raw, little-endian) or `voices/<name>.pt` (official). The first
letter names the language it was made for (a American, b British, e f h i j p z others), the second f or m.
"""

from __future__ import annotations

import difflib
import math
import re
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from izwi_lab.errors import CheckpointError, InvalidInputError

ROWS, WIDTH = 510, 256
DEFAULT = "af_heart"
_NAME = re.compile(r"[A-Za-z0-9_-]+")
_DUMMY_SCALE = 0.15  # about the spread of real style vectors


class Voices:
    """The voices of one model, read when used. Immutable; rows come out as float32 [1, 256]."""

    def __init__(self, files: Mapping[str, Path], dummy: tuple[str, ...] = ()) -> None:
        self._files = dict(sorted(files.items()))
        self._dummy = dummy
        self._tables: dict[str, np.ndarray] = {}

    @staticmethod
    def of(folder: Path) -> Voices:
        """The voices in `folder/voices`. Raises CheckpointError where there are none."""
        found: dict[str, Path] = {}
        for pattern in ("voices/*.pt", "voices/*.bin"):  # the raw form wins: it is read a row at a time
            found.update({p.stem: p for p in folder.glob(pattern) if _NAME.fullmatch(p.stem)})
        if not found:
            raise CheckpointError(f"No voices/*.bin or voices/*.pt in {folder}.", hint="Fetch the model again.")
        return Voices(found)

    @property
    def names(self) -> tuple[str, ...]:
        """Installed voices, in order of name."""
        return self._dummy or tuple(self._files)

    @property
    def default(self) -> str:
        """af_heart, else the first English voice, else the first."""
        if DEFAULT in self.names:
            return DEFAULT
        return next((n for n in self.names if n[0] in "ab"), self.names[0])

    def parse(self, voice: str | None) -> tuple[tuple[str, float], ...]:
        """A voice or blend as (name, share) pairs whose shares sum to 1.

        "af_heart", "af_heart+am_michael" (equal shares), "af_heart:0.7+am_michael:0.3" (any positive weights).

        Raises:
            InvalidInputError: a voice is not installed (the nearest are named) or a weight is not a positive number.
        """
        parts: dict[str, float] = {}
        for part in (self.default if voice is None else voice).split("+"):
            name, colon, weight = (t.strip() for t in part.partition(":"))
            if name not in self.names:
                raise _unknown(name, self.names)
            try:
                share = float(weight) if colon else 1.0
            except ValueError:
                share = math.nan
            if not (math.isfinite(share) and share > 0):
                raise InvalidInputError(
                    f"The weight of voice {name!r} is {weight!r}; expected a positive number.",
                    hint='Write a blend as "af_heart:0.7+am_michael:0.3".',
                )
            parts[name] = parts.get(name, 0.0) + share
        total = sum(parts.values())
        return tuple((name, share / total) for name, share in parts.items())

    def style(self, blend: tuple[tuple[str, float], ...], phonemes: int) -> np.ndarray:
        """The style vector for a text of that many phonemes: float32 [1, 256]."""
        row = min(max(phonemes, 1), ROWS) - 1
        if len(blend) == 1:
            return self._row(blend[0][0], row)
        return np.asarray(sum(np.float64(share) * self._row(name, row) for name, share in blend), np.float32)

    def _row(self, name: str, row: int) -> np.ndarray:
        if self._dummy:
            rng = np.random.Generator(np.random.Philox(key=[self._dummy.index(name), row]))
            return rng.standard_normal((1, WIDTH), dtype=np.float32) * np.float32(_DUMMY_SCALE)
        path = self._files[name]
        try:
            if path.suffix == ".bin":
                values = self._raw_row(path, row)
            else:
                if name not in self._tables:
                    from izwi_lab.artifacts.torch_zip_reader import read_tensor

                    self._tables[name] = read_tensor(path, (ROWS, 1, WIDTH))
                values = self._tables[name][row]
        except OSError as error:
            raise CheckpointError(f"Voice {name} cannot be read: {error}.", hint="Fetch the model again.") from error
        if not np.all(np.isfinite(values)):
            raise CheckpointError(f"Voice {name} holds values that are not numbers.", hint="Fetch the model again.")
        return values

    @staticmethod
    def _raw_row(path: Path, row: int) -> np.ndarray:
        expected, size = ROWS * WIDTH * 4, path.stat().st_size
        if size != expected:
            raise CheckpointError(
                f"{path.name} has {size} bytes; a voice has {expected}.", hint="Fetch the model again."
            )
        values = np.fromfile(path, "<f4", count=WIDTH, offset=row * WIDTH * 4)
        return np.asarray(values.reshape(1, WIDTH), np.float32)


def label(blend: tuple[tuple[str, float], ...]) -> str:
    """A blend as text, the way it can be given again."""
    if len({share for _, share in blend}) == 1:
        return "+".join(name for name, _ in blend)
    return "+".join(f"{name}:{share:.4g}" for name, share in blend)


def _unknown(name: str, names: tuple[str, ...]) -> InvalidInputError:
    nearest = difflib.get_close_matches(name.lower(), names, n=3, cutoff=0.4) or list(names[:3])
    return InvalidInputError(
        f"Voice {name!r} is not installed.", hint=f"Nearest: {', '.join(nearest)}. Installed: {', '.join(names)}."
    )
