"""Room on the disk: what a fetch needs, checked before the first byte is asked for."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path

from izwi_lab.errors import ArtifactError

_MARGIN_BYTES = 64 * 2**20


def check_room(what: str, needs: Mapping[Path, int]) -> None:
    """Raise ArtifactError unless every folder's disk has room for the bytes it is to receive.

    Args:
        what: Names the model in the message.
        needs: Bytes to be written under each folder; folders on one disk are added up. They need not exist.
    """
    by_disk: dict[int, tuple[Path, int]] = {}
    for folder, count in needs.items():
        here = folder
        while not here.exists() and here != here.parent:
            here = here.parent
        device = here.stat().st_dev
        first, already = by_disk.get(device, (here, 0))
        by_disk[device] = (first, already + count)
    for folder, count in by_disk.values():
        free = shutil.disk_usage(folder).free
        if count and count + _MARGIN_BYTES > free:
            raise ArtifactError(
                f"Not enough disk space for {what}: it needs {_mb(count + _MARGIN_BYTES)} on the disk of {folder}, "
                f"{_mb(free)} is free.",
                hint="Free some space, or set IZWI_MODELS_DIR to a folder on another disk.",
            )


def _mb(count: int) -> str:
    return f"{count / 1e6:,.0f} MB"
