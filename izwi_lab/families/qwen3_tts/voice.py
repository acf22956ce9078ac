"""Voice: a cloned voice as a value that can be kept in a file, listed and used again. Nothing is pickled.

Shapes: D width of the speaker vector, K codebooks, R reference frames (12.5 a second).
"""

from __future__ import annotations

import dataclasses
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np

from izwi_lab.errors import CheckpointError, InvalidInputError

FRAMES_HZ = 12.5
_KIND = "izwi-voice-1"
_MOST_BYTES = 16 << 20
_MOST = {"name": 200, "transcript": 20_000, "language": 100, "source": 500}
_MOST_WIDTH, _MOST_CODEBOOKS, _MOST_FRAMES, _MOST_CODE = 1 << 16, 64, 4096, 1 << 20


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class Voice:
    """A voice taken from reference audio by `model.voice(...)`. Treat its arrays as read-only.

    name: for lists and files. embedding: float32 [D], the speaker vector; D belongs to a size of model. codes: int32
    [K, R], the reference audio as codes, or None for a voice by its vector alone. transcript: what the reference says,
    word for word; there if and only if codes are. language: spoken in the reference, "" if unknown. source: id of the
    model that made it.

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

    def __post_init__(self) -> None:
        for field, most in _MOST.items():
            value = getattr(self, field)
            if not isinstance(value, str) or len(value) > most:
                raise InvalidInputError(f"Voice: {field} must be text of at most {most} characters, got {value!r:.80}.")
        if not self.name.strip():
            raise InvalidInputError("Voice: the name is empty.", hint="Give it one to be listed by.")
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

        from izwi_lab.artifacts.atomic import written

        target = _file_path(path)
        arrays = {"embedding": self.embedding} | ({} if self.codes is None else {"codes": self.codes})
        with written(target) as file:
            file.write(save(arrays, metadata={"kind": _KIND} | {n: getattr(self, n) for n in _MOST}))
        return target

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Self:
        """Read a file of `save`.

        Raises:
            InvalidInputError: no path of a file. CheckpointError: the file is absent, damaged, hostile, or no voice.
        """
        file = _file_path(path)
        if (metadata := _metadata(file)) is None:
            raise CheckpointError(f"{file} is no saved voice.", hint="Expected a file of Voice.save().")
        arrays = _arrays(file)
        try:
            return cls(
                embedding=arrays["embedding"], codes=arrays.get("codes"), **{n: metadata.get(n, "") for n in _MOST}
            )
        except InvalidInputError as error:
            raise CheckpointError(f"{file} is damaged: {error}", hint="Make the voice again.") from None

    @classmethod
    def saved(cls, folder: str | os.PathLike[str]) -> tuple[Self, ...]:
        """The voices kept in a folder's *.safetensors files, in order of name. Other files are passed over.

        Raises:
            CheckpointError: the folder is absent, or one of its voices is damaged.
        """
        home = Path(folder)
        if not home.is_dir():
            raise CheckpointError(f"There is no folder {home}.", hint="Save a voice there first.")
        files = [p for p in home.glob("*.safetensors") if p.is_file() and _metadata(p) is not None]
        return tuple(sorted((cls.load(p) for p in files), key=lambda v: (v.name.casefold(), v.name)))

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
        parts += [p for p in (self.language, self.source and f"by {self.source}") if p]
        return f"Voice({', '.join(parts)})"


def _embedding(value: Any) -> np.ndarray:
    array = np.asarray(value)
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
    array = np.asarray(value)
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


def _file_path(path: object) -> Path:
    if not isinstance(path, (str, os.PathLike)) or not str(path).strip():
        raise InvalidInputError(f"A voice is kept in a file, got {path!r:.80}.", hint="Give the path of one.")
    if (file := Path(path)).is_dir():
        raise InvalidInputError(
            f"{file} is a folder; a voice is kept in a file.", hint=f"For example {file / 'anna.safetensors'}."
        )
    return file


def _metadata(path: Path) -> dict[str, str] | None:
    """What a file says of its voice; None for one that is no voice. Its size is looked at before anything is read."""
    from izwi_lab.artifacts.safetensors_header import read_header

    try:
        size = path.stat().st_size
    except (OSError, ValueError) as error:
        raise CheckpointError(f"Cannot read {path}: {getattr(error, 'strerror', None) or error}.") from None
    if size > _MOST_BYTES:
        return None
    metadata = read_header(path).metadata
    return metadata if metadata.get("kind") == _KIND else None


def _arrays(path: Path) -> dict[str, np.ndarray]:
    """The arrays of a voice's file, whose header was checked against the size of the file."""
    from izwi_lab.artifacts.safetensors_header import read_header

    expected = {"embedding": ("float32", 1), "codes": ("int32", 2)}
    entries = read_header(path).entries
    found = {n: (e.dtype, len(e.shape)) for n, e in entries.items()}
    if "embedding" not in found or any(expected.get(n) != kind for n, kind in found.items()):
        raise CheckpointError(
            f"{path} holds {', '.join(sorted(found)) or 'nothing'}; a voice holds embedding [D] and codes [K, R].",
            hint="Expected a file of Voice.save().",
        )
    raw = path.read_bytes()
    types = {"float32": "<f4", "int32": "<i4"}
    return {  # copies: views of bytes cannot be written to, which torch warns of
        n: np.frombuffer(raw, types[e.dtype], e.nbytes // 4, e.start).reshape(e.shape).copy()
        for n, e in entries.items()
    }
