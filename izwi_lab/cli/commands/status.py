"""`izwi-lab status`: what this machine offers, what is on disk, and what is missing with the reason."""

from __future__ import annotations

import argparse
import platform
from typing import Any

from izwi_lab import __version__
from izwi_lab.cli import console
from izwi_lab.cli.commands.rm import folder_bytes


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the flags."""
    parser.add_argument("--json", action="store_true", help="for programs")


def run(args: argparse.Namespace) -> int:
    """Print it. Imports neither torch nor mlx, and builds nothing."""
    found = _collect()
    if args.json:
        console.say_json(found)
        return 0
    console.say(f"izwi-lab {found['version']}, Python {found['python']}, {found['platform']}")
    _section("Devices", ["BACKEND", "DEVICE", "VERSION", "MEMORY", "FREE", "HARDWARE"], [
        [d["backend"], d["device"], d["version"], console.size(d["memory_bytes"]), console.size(d["available_bytes"]),
         d["label"]] for d in found["devices"]
    ], "none: pip install 'izwi-lab[torch]'")  # fmt: skip
    _section(
        "Not available",
        ["BACKEND", "DEVICE", "REASON"],
        [[m["backend"], m["device"], m["reason"]] for m in found["missing"]],
        "",
    )
    _section(
        f"Models in {found['models_dir']}",
        ["ID", "SIZE", "LAYOUT", "FROM"],
        [[m["id"], console.size(m["size_bytes"]), m["layout"], m["source"]] for m in found["models"]],
        "none: izwi-lab pull ID",
    )
    _section("Native kernels", ["NAME", "STATE"], [list(pair) for pair in found["native"].items()], "")
    _section(
        "Settings",
        ["SETTING", "VALUE", "FROM"],
        [[key, str(s["value"]), s["source"]] for key, s in found["settings"].items()],
        "",
    )
    return 0


def _section(title: str, headers: list[str], rows: list[list[str]], otherwise: str) -> None:
    """A titled table; without rows the other text, or nothing at all."""
    if rows or otherwise:
        console.say(f"\n{title}")
        console.say(console.table(headers, rows) if rows else otherwise)


def _collect() -> dict[str, Any]:
    from izwi_lab import artifacts, settings
    from izwi_lab.backends import detect, native

    survey = detect.survey()
    read = settings.load()
    return {
        "version": __version__,
        "python": platform.python_version(),
        "platform": platform.platform(),
        "devices": [
            {
                "backend": d.backend,
                "device": d.name,
                "kind": d.kind,
                "version": d.version,
                "memory_bytes": d.memory_bytes,
                "available_bytes": d.available_bytes,
                "features": list(d.features),
                "label": d.label,
            }
            for d in survey.devices
        ],
        "missing": [{"backend": m.backend, "device": m.device, "reason": m.reason} for m in survey.missing],
        "models_dir": str(artifacts.models_dir()),
        "models": _models(),
        "native": native.known(),
        "settings": {key: {"value": str(getattr(read, key)), "source": source} for key, source in read.sources.items()},
    }


def _models() -> list[dict[str, Any]]:
    from izwi_lab import artifacts, catalog

    located = (artifacts.locate(variant) for variant in catalog.variants(include_disabled=True))
    return [
        {
            "id": str(local.variant),
            "size_bytes": folder_bytes(local.folder),
            "layout": str(local.layout),
            "source": local.source,
            "path": str(local.folder),
        }
        for local in located
        if local is not None
    ]
