"""`izwi-lab rm`: delete a model's files."""

from __future__ import annotations

import argparse
from pathlib import Path

from izwi_lab.cli import console


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the flags."""
    parser.add_argument("id", metavar="ID", help="a catalog id, hub repo or display name; see `izwi-lab list`")
    parser.add_argument("-y", "--yes", action="store_true", help="do not ask")


def run(args: argparse.Namespace) -> int:
    """Delete after a question, unfinished downloads too; 1 when there is nothing, or the answer is no."""
    from izwi_lab import artifacts, catalog
    from izwi_lab.artifacts.paths import model_folder

    variant = catalog.get(args.id)
    folder = model_folder(variant.id)
    if not folder.exists():
        console.note(f"{variant.id} is not on disk: there is no {folder}.")
        return 1
    size = console.size(folder_bytes(folder))
    if not args.yes and not console.confirm(f"Delete {folder} ({size})?"):
        console.note("Kept.")
        return 1
    artifacts.delete(variant)
    console.note(f"Deleted {variant.id} ({size}).")
    return 0


def folder_bytes(folder: Path) -> int:
    """Bytes of all files below a folder."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
