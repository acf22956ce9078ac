"""`izwi-lab list`: the catalog as a table."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, Any

from izwi_lab.catalog.variant import Family, Task
from izwi_lab.cli import console

if TYPE_CHECKING:
    from izwi_lab.catalog.variant import ModelVariant


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the flags."""
    parser.add_argument("--task", choices=[str(task) for task in Task], help="only models that do this")
    parser.add_argument("--family", choices=[str(family) for family in Family], help="only models of this family")
    parser.add_argument("--all", action="store_true", help="also models that are switched off in the catalog")
    parser.add_argument("--json", action="store_true", help="for programs: every field, one object per model")


def run(args: argparse.Namespace) -> int:
    """Print one row per model."""
    from izwi_lab import catalog

    rows = [_row(v) for v in catalog.variants(args.task, args.family, include_disabled=args.all)]
    if args.json:
        console.say_json(rows)
        return 0
    if not rows:
        console.note("No model matches; --all also shows those that are switched off.")
        return 0
    console.say(
        console.table(
            ["ID", "TASKS", "SIZE", "ON DISK", "FROM", "RUNS ON", "LICENCE"],
            [
                [
                    row["id"],
                    ",".join(row["tasks"]),
                    console.size(row["size_bytes"]),
                    "yes" if row["path"] else "-",
                    "packages, hub" if row["starter"] else "hub (gated)" if row["gated"] else "hub",
                    ", ".join(row["runs_on"]) or (f"release {row['release']}" if row["release"] else "not yet"),
                    row["licence"],
                ]
                for row in rows
            ],
            right=["SIZE"],
        )
    )
    return 0


def _row(variant: ModelVariant) -> dict[str, Any]:
    from izwi_lab import artifacts, catalog

    local = artifacts.locate(variant)
    can = catalog.capabilities(variant)
    return {
        "id": variant.id,
        "name": variant.display_name,
        "repo": variant.repo,
        "family": str(variant.family),
        "tasks": [str(task) for task in variant.tasks],
        "size_bytes": variant.size_bytes,
        "quantisation": variant.quantisation,
        "licence": variant.licence,
        "languages": list(variant.languages),
        "voices": list(variant.voices),
        "gated": variant.gated,
        "starter": variant.starter is not None,
        "enabled": variant.enabled,
        "runs_on": list(can.backends),
        "release": can.release,
        "path": str(local.folder) if local else None,
    }
