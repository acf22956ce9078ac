"""Voice: a cloned voice as a value that can be kept in a file, listed and used again. Nothing is pickled.

Shapes: D width of the speaker vector, K codebooks, R reference frames (12.5 a second).
"""

from __future__ import annotations

import dataclasses
import logging
import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np

from izwi_lab.audio import expanded
from izwi_lab.errors import CheckpointError, InvalidInputError, IzwiError
from izwi_lab.families.qwen3_tts.voice_file import KIND, arrays, file_path, metadata

_log = logging.getLogger(__name__)

FRAMES_HZ = 12.5
_MOST = {"name": 200, "transcript": 20_000, "language": 100, "source": 500}
_UNKEPT = re.compile(r"[\x00\ud800-\udfff]")  # NUL and halves of characters: no file holds them
_MOST_WIDTH, _MOST_CODEBOOKS, _MOST_FRAMES, _MOST_CODE = 1 << 16, 64, 4096, 1 << 20


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class Voice:
    """A voice taken from reference audio by `model.voice(...)`. Treat its arrays as read-only.

    name: for lists and files. embedding: float32 [D], the speaker vector; D belongs to a size of model. codes: int32
    [K, R], the reference audio as codes, or None for a voice by its vector alone. transcript: what the reference says,
    word for word; there if and only if codes are. language: spoken in the reference, "" if unknown. source: id of the
    model that made it. notes: what was done to the clip when it was made; neither kept in the file nor compared.

    >>> voice = model.voice("anna.wav", "What Anna says there.", name="anna")    # doctest: +SKIP
    >>> voice.save("anna.safetensors")    # doctest: +SKIP
    >>> izwi.Voice.load("anna.safetensors")    # doctest: +SKIP
    """

    name: str
    embedding: np.ndarray
    codes: np.ndarray | None = None
    transcript: str = ""
    language: str = ""
    source: str = ""
    notes: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        check_texts(**{field: getattr(self, field) for field in _MOST})
        if not isinstance(self.notes, tuple) or not all(isinstance(note, str) for note in self.notes):
            raise InvalidInputError(f"Voice: notes must be a tuple of texts, got {self.notes!r:.80}.")
        object.__setattr__(self, "embedding", _embedding(self.embedding))
        if self.codes is not None:
            object.__setattr__(self, "codes", _codes(self.codes))
        if (self.codes is not None) != bool(self.transcript.strip()):
            have, lack = ("codes", "a transcript") if self.codes is not None else ("a transcript", "codes")
            raise InvalidInputError(
                f"Voice {self.name!r} has {have} but not {lack}.",
                hint="The model reads both side by side: give both, or neither.",
            )

    @property
    def reference_s(self) -> float:
        """Seconds of reference audio that come with it; 0 for a voice by its vector alone."""
        return 0.0 if self.codes is None else self.codes.shape[1] / FRAMES_HZ

    def vector_only(self) -> Self:
        """The same voice by its speaker vector alone: less alike, and free of the reference's manner and language."""
        return dataclasses.replace(self, codes=None, transcript="")

    def save(self, path: str | os.PathLike[str]) -> Path:
        """Write a safetensors file, whole or not at all. Returns its path.

        Raises:
            InvalidInputError: no path of a file. ArtifactError: it cannot be written.
        """
        from safetensors.numpy import save

        from izwi_lab.artifacts.atomic import PART, written

        target = file_path(path)
        file_path(f"{target}{PART}")  # what it is called until it is whole
        values = {"embedding": self.embedding} | ({} if self.codes is None else {"codes": self.codes})
        with written(target) as file:
            file.write(save(values, metadata={"kind": KIND} | {n: getattr(self, n) for n in _MOST}))
        return target

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Self:
        """Read a file of `save`.

        Raises:
            InvalidInputError: no path of a file. CheckpointError: the file is absent, damaged, hostile, or no voice.
        """
        file = file_path(path)
        if (said := metadata(file)) is None:
            raise CheckpointError(f"{file} is no saved voice.", hint="Expected a file of Voice.save().")
        held = arrays(file)
        try:
            texts: dict[str, Any] = {n: said.get(n, "") for n in _MOST}
            return cls(embedding=held["embedding"], codes=held.get("codes"), **texts)
        except InvalidInputError as error:
            raise CheckpointError(f"{file} is damaged: {error}", hint="Make the voice again.") from None

    @classmethod
    def saved(cls, folder: str | os.PathLike[str]) -> tuple[Voice, ...]:
        """The voices kept in a folder's *.safetensors files, in order of name.

        Other files are passed over, damaged ones with a warning in the log; see `kept`.

        Raises:
            CheckpointError: the folder is absent.
        """
        voices, damaged = kept(folder)
        for error in damaged:
            _log.warning("passed over: %s", error)
        return voices

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Voice):
            return NotImplemented
        same = all(getattr(self, n) == getattr(other, n) for n in _MOST)
        if self.codes is None or other.codes is None:
            same = same and self.codes is other.codes
        else:
            same = same and np.array_equal(self.codes, other.codes)
        return same and np.array_equal(self.embedding, other.embedding)

    def __hash__(self) -> int:
        return hash((self.name, self.transcript, self.embedding.tobytes()))

    def __repr__(self) -> str:
        said = self.transcript if len(self.transcript) <= 40 else self.transcript[:39] + "…"
        parts = [repr(self.name), f"vector of {len(self.embedding)}"]
        parts.append(f"{self.reference_s:.1f} s saying {said!r}" if self.codes is not None else "no reference")
        parts += [_shown(p) for p in (self.language, self.source and f"by {self.source}", *self.notes) if p]
        return f"Voice({', '.join(parts)})"


def check_texts(**texts: Any) -> None:
    """Raise InvalidInputError for what a voice's name, transcript, language or source cannot be."""
    for field, value in texts.items():
        if not isinstance(value, str) or len(value) > _MOST[field]:
            raise InvalidInputError(
                f"Voice: {field} must be text of at most {_MOST[field]} characters, got {value!r:.80}."
            )
        if bad := _UNKEPT.search(value):
            raise InvalidInputError(
                f"Voice: {field} holds {bad[0]!r} at character {bad.start()}, which is no character of a text.",
                hint="Decode it with the encoding it came in.",
            )
        if field == "name" and not value.strip():
            raise InvalidInputError("Voice: the name is empty.", hint="Give it one to be listed by.")


def kept(folder: str | os.PathLike[str]) -> tuple[tuple[Voice, ...], tuple[IzwiError, ...]]:
    """The voices of a folder in order of name, and what is wrong with those of its files that are damaged.

    Raises:
        CheckpointError: the folder is absent.
    """
    try:
        home = expanded(folder)
        files = sorted(home.glob("*.safetensors")) if home.is_dir() else None
    except (OSError, TypeError, ValueError):  # no path, a NUL in it, a name longer than any file can have
        files = None
    if files is None:
        raise CheckpointError(f"There is no folder {folder!s:.300}.", hint="Save a voice there first.")
    voices, damaged = [], []
    for file in files:
        try:
            if file.is_file() and metadata(file) is not None:
                voices.append(Voice.load(file))
        except IzwiError as error:
            damaged.append(error)
    return tuple(sorted(voices, key=lambda v: (v.name.casefold(), v.name))), tuple(damaged)


def _shown(text: str) -> str:
    return text if text.isprintable() else repr(text)


def _array(value: Any) -> np.ndarray:
    try:
        return np.asarray(value)
    except (TypeError, ValueError) as error:  # rows of several lengths
        raise InvalidInputError(f"Voice: {value!r:.80} is no array: {error}.") from None


def _embedding(value: Any) -> np.ndarray:
    array = _array(value)
    if array.ndim != 1 or array.dtype.kind != "f" or not 1 <= array.size <= _MOST_WIDTH:
        raise InvalidInputError(
            f"Voice: the embedding must be floats [D], got {array.dtype} {list(array.shape)}.",
            hint="model.voice(audio) makes one.",
        )
    with np.errstate(over="ignore"):  # what float32 cannot hold becomes infinite
        narrow = np.ascontiguousarray(array, np.float32)
    if not np.isfinite(narrow).all():
        raise InvalidInputError("Voice: the embedding holds NaN or infinity.", hint="Make the voice again.")
    return narrow


def _codes(value: Any) -> np.ndarray:
    array = _array(value)
    if array.ndim != 2 or array.dtype.kind not in "iu" or not array.size:
        raise InvalidInputError(
            f"Voice: codes must be whole numbers [K, R], got {array.dtype} {list(array.shape)}.",
            hint="model.voice(audio, transcript) makes them.",
        )
    if array.shape[0] > _MOST_CODEBOOKS or array.shape[1] > _MOST_FRAMES:
        raise InvalidInputError(
            f"Voice: codes are {list(array.shape)}; at most [{_MOST_CODEBOOKS}, {_MOST_FRAMES}] are kept.",
            hint="Take a shorter reference.",
        )
    if array.min() < 0 or array.max() >= _MOST_CODE:
        raise InvalidInputError(f"Voice: codes go from {array.min()} to {array.max()}, which no codebook has.")
    return np.ascontiguousarray(array, np.int32)
