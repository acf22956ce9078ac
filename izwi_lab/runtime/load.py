"""Loading: from a variant, its files and a plan to a family's model. Nothing else in the package builds models."""

from __future__ import annotations

import importlib
import threading
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, cast

from izwi_lab import backends, codecs, families
from izwi_lab.backends import host
from izwi_lab.backends.base import Backend, BackendPlan
from izwi_lab.errors import InvalidInputError, IzwiError

if TYPE_CHECKING:
    from izwi_lab.artifacts import LocalModel
    from izwi_lab.catalog.variant import ModelVariant
    from izwi_lab.families.protocols import FamilyLoader, Model

LOAD_FORMATS = ("auto", "dummy")

_lock = threading.Lock()
_backends: dict[tuple[str, str, str], Backend] = {}


def backend_for(plan: BackendPlan) -> Backend:
    """The backend of a plan; one per (backend, device, dtype) in a process."""
    key = (plan.backend, plan.device, plan.dtype)
    with _lock:
        if key not in _backends:
            _backends[key] = backends.open_backend(plan)
        return _backends[key]


def working_families() -> tuple[str, ...]:
    """The families and codecs that this version can build: those with a `model.py`."""
    return tuple(sorted(_built(families) | _built(codecs)))


def _built(package: ModuleType) -> set[str]:
    return {file.parent.name for root in package.__path__ for file in Path(root).glob("*/model.py")}


def check_family(variant: ModelVariant) -> None:
    """Raise IzwiError, naming the families that run, when this version lists the variant but cannot run it."""
    if str(variant.family) not in working_families():
        raise IzwiError(
            f"{variant.id} is of the family {str(variant.family)!r}, which this version lists but cannot run.",
            hint=f"Families that run: {', '.join(working_families())}.",
        )


def family_loader(variant: ModelVariant) -> FamilyLoader:
    """`load` of the variant's family from its `model.py`, or `load_model` of its codec."""
    check_family(variant)
    if variant.family in _built(codecs):
        module = importlib.import_module(f"{codecs.__name__}.{variant.family}.model")
        return cast("FamilyLoader", module.load_model)
    module = importlib.import_module(f"{families.__name__}.{variant.family}.model")
    return cast("FamilyLoader", module.load)


def build(variant: ModelVariant, local: LocalModel | None, plan: BackendPlan, *, load_format: str = "auto") -> Model:
    """Build the model. local: its files; None only with load_format="dummy", which makes random weights."""
    check_load_format(load_format)
    loader = family_loader(variant)
    dummy = load_format == "dummy"
    if local is None and not dummy:
        raise InvalidInputError(f"{variant.id} needs its files to load.", hint="load_format='dummy' needs none.")
    folder, layout = (None, variant.layout) if local is None or dummy else (local.folder, local.layout)
    model = loader(variant, folder, plan, backend_for(plan), layout=str(layout), load_format=load_format)
    host.return_freed_memory()
    return model


def check_load_format(load_format: str) -> None:
    """Raise InvalidInputError for a load_format that does not exist."""
    if load_format not in LOAD_FORMATS:
        raise InvalidInputError(f"load_format must be one of {LOAD_FORMATS}, got {load_format!r}.")
