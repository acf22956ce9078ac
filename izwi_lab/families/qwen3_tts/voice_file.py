"""The files that voices are kept in: paths that can be one, and reading with every number checked first.

Shapes: D width of the speaker vector, K codebooks, R reference frames.
"""

from __future__ import annotations

import os
import stat
from pathlib import Path

import numpy as np

from izwi_lab.audio import expanded
from izwi_lab.errors import CheckpointError, InvalidInputError

KIND = "izwi-voice-1"
MOST_BYTES = 16 << 20


def file_path(path: object) -> Path:
    """The path as one that a file has or can have. Raises InvalidInputError for a folder, a pipe or no path at all."""
    if not isinstance(path, (str, os.PathLike)) or not str(path).strip():
        raise InvalidInputError(f"A voice is kept in a file, got {path!r:.80}.", hint="Give the path of one.")
    try:
        file = expanded(path)
        mode = file.stat().st_mode
    except (FileNotFoundError, NotADirectoryError, PermissionError):
        return file
    except (OSError, TypeError, ValueError) as error:  # a name too long for a file, a NUL, half a character
        reason = getattr(error, "strerror", None) or error
        raise InvalidInputError(
            f"A voice is kept in a file, and {str(path)!r:.80} can be none: {reason}.", hint="Give the path of one."
        ) from None
    if stat.S_ISDIR(mode):
        raise InvalidInputError(
            f"{file} is a folder; a voice is kept in a file.", hint=f"For example {file / 'anna.safetensors'}."
        )
    if not stat.S_ISREG(mode):
        raise InvalidInputError(f"{file} is no file that a voice can be kept in.", hint="Give the path of a file.")
    return file


def metadata(path: Path) -> dict[str, str] | None:
    """What a file says of its voice; None for one that is no voice. Its size is looked at before anything is read."""
    from izwi_lab.artifacts.safetensors_header import read_header

    try:
        size = path.stat().st_size
    except (OSError, ValueError) as error:
        raise CheckpointError(f"Cannot read {path}: {getattr(error, 'strerror', None) or error}.") from None
    if size > MOST_BYTES:
        return None
    said = read_header(path).metadata
    return said if said.get("kind") == KIND else None


def arrays(path: Path) -> dict[str, np.ndarray]:
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
