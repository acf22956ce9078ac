"""The manifest of a fetched model: what came from where, each file with its size and hash, and whether it is all."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from izwi_lab.artifacts.atomic import written
from izwi_lab.catalog.variant import Layout

NAME = "izwi-manifest.json"
_FORMAT = 1


@dataclass(frozen=True, slots=True)
class StoredFile:
    """One file of a model as it lies on disk."""

    bytes: int
    sha256: str


@dataclass(frozen=True, slots=True)
class Manifest:
    """Contents of the manifest file. files: by their path in the folder, with forward slashes.

    commit: of the hub repo, "" otherwise; kept from the first download on, so that a moving branch cannot mix two
    versions. complete: False while the fetch is under way; `verified` then lists what need not be fetched again.
    """

    variant: str
    source: str
    layout: str
    repo: str = ""
    commit: str = ""
    note: str = ""
    complete: bool = False
    files: Mapping[str, StoredFile] | None = None

    def with_file(self, name: str, stored: StoredFile) -> Manifest:
        """This manifest with one more finished file."""
        return replace(self, files={**(self.files or {}), name: stored})

    def verified(self, folder: Path) -> dict[str, StoredFile]:
        """The files that are there with the size they were stored with."""
        return {name: f for name, f in (self.files or {}).items() if _size(folder / name) == f.bytes}

    def intact(self, folder: Path) -> bool:
        """True when the fetch was completed and every file still has its size."""
        return self.complete and bool(self.files) and len(self.verified(folder)) == len(self.files or {})

    def write(self, folder: Path) -> None:
        """Put the manifest into `folder`, whole or not at all."""
        with written(folder / NAME) as file:
            file.write(json.dumps({"format": _FORMAT, **asdict(self)}, indent=1).encode())


def read_manifest(folder: Path) -> Manifest | None:
    """The manifest of `folder`; None when it is absent, damaged, of another format or for an unknown layout."""
    try:
        values: dict[str, Any] = json.loads((folder / NAME).read_text(encoding="utf-8"))
        if values.pop("format") != _FORMAT:
            return None
        files = {str(n): StoredFile(int(f["bytes"]), str(f["sha256"])) for n, f in (values.pop("files") or {}).items()}
        Layout(values["layout"])  # one that this version does not know cannot be opened by it either
        return Manifest(files=files, **values)
    except (OSError, ValueError, TypeError, KeyError, AttributeError, OverflowError, RecursionError):
        return None


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:
        return -1
