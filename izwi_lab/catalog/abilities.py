"""What a variant can do here: its tasks, and which backends its family has nets for in this installation.

Looks for files and imports nothing of a family: adding one is its folder and one catalog table.
"""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass
from functools import cache
from importlib.machinery import PathFinder
from pathlib import Path

from izwi_lab import __version__
from izwi_lab.catalog.store import catalog
from izwi_lab.catalog.variant import Family, ModelVariant, Task

_BACKENDS = ("torch", "mlx")
_HOMES = ("families", "codecs")  # a family's folder is in one of these


@dataclass(frozen=True, slots=True)
class Capabilities:
    """What a variant does and whether this installation can run it.

    backend_hint: the backend its checkpoint was made for ("mlx" for mlx-community repos), or "any".
    backends: those its family has a net for. runnable: whether there is one. release: the izwi_lab release that
    brings the family. reason: why it cannot run, empty when it can.
    """

    variant: str
    family: Family
    task: Task
    tasks: tuple[Task, ...]
    backend_hint: str
    backends: tuple[str, ...]
    runnable: bool
    release: str
    reason: str


def capabilities(variant: ModelVariant) -> Capabilities:
    """The capabilities of a variant, catalogued or made by the caller."""
    backends = family_backends(variant.family)
    info = catalog().families.get(variant.family)
    release = info.release if info else ""
    reason = ""
    if not backends:
        planned = f"; it is planned for release {release}" if release and not __version__.startswith(release) else ""
        reason = f"this release of izwi_lab has no family {variant.family}{planned}"
    return Capabilities(
        variant=variant.id,
        family=variant.family,
        task=variant.task,
        tasks=variant.tasks,
        backend_hint="mlx" if variant.repo.startswith("mlx-community/") else "any",
        backends=backends,
        runnable=bool(backends),
        release=release,
        reason=reason,
    )


@cache
def family_backends(family: Family) -> tuple[str, ...]:
    """The backends a family can run on: those of its `*_net.py`, or all when it only uses the shared nets.

    Shared nets always come as a pair, so a family folder with a model and no net of its own runs on every backend.
    """
    folder = _folder(family)
    if folder is None:
        return ()
    own = tuple(b for b in _BACKENDS if _has_module(folder, f"{b}_net"))
    return own or _BACKENDS


def _folder(family: Family) -> Path | None:
    package = importlib.util.find_spec("izwi_lab")
    roots = package.submodule_search_locations if package else None
    for root in roots or ():
        for home in _HOMES:
            folder = Path(root) / home / family.value
            if _has_module(folder, "model"):
                return folder
    return None


def _has_module(folder: Path, name: str) -> bool:
    return PathFinder.find_spec(name, [str(folder)]) is not None
