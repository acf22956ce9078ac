"""Files that appear whole or not at all: write aside, flush to disk, rename into place."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

from izwi_lab.errors import ArtifactError

PART = ".part"


@contextmanager
def written(path: Path, *, check: Callable[[], None] | None = None) -> Iterator[BinaryIO]:
    """Open `path` for writing beside itself; it becomes visible, complete and on disk, when the block ends well.

    check: called after the last byte is on disk and before the rename; what it raises keeps the file invisible.

    Raises:
        ArtifactError: the disk is full or the folder cannot be written.
    """
    part = path.with_name(path.name + PART)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with part.open("wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        if check is not None:
            check()
        os.replace(part, path)  # noqa: PTH105 - the atomic one, by the name everybody knows
        _sync_folder(path.parent)
    except OSError as error:
        with suppress(OSError):  # where its folder is none
            part.unlink(missing_ok=True)
        raise write_error(error, path) from error
    except BaseException:
        part.unlink(missing_ok=True)
        raise


def write_error(error: OSError, path: Path) -> ArtifactError:
    """What to tell the user about an OSError met while writing `path`."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return ArtifactError(
            f"The disk is full: could not write {path}.",
            hint="Free some space and start again; finished files are kept.",
        )
    return ArtifactError(
        f"Could not write {path}: {error.strerror or error}.", hint="Check its permissions, or set IZWI_MODELS_DIR."
    )


def _sync_folder(folder: Path) -> None:
    """Make the rename itself survive a power cut (POSIX; Windows has no folder handles)."""
    if os.name != "posix":
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
