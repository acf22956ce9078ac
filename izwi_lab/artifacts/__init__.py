"""Getting checkpoints: sources, verified resumable downloads, readers, converted cache. Names load when first used.

>>> from izwi_lab import artifacts, catalog
>>> model = artifacts.fetch(catalog.get("SmolLM2-135M-Instruct"))    # doctest: +SKIP
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from izwi_lab.artifacts.download import DownloadManager, Job, delete, fetch, manager
    from izwi_lab.artifacts.local_model import LocalModel, detect_layout, local, locate
    from izwi_lab.artifacts.paths import models_dir
    from izwi_lab.artifacts.progress import Progress, State

_HOME = {
    "DownloadManager": "download",
    "Job": "download",
    "LocalModel": "local_model",
    "Progress": "progress",
    "State": "progress",
    "delete": "download",
    "detect_layout": "local_model",
    "fetch": "download",
    "local": "local_model",
    "locate": "local_model",
    "manager": "download",
    "models_dir": "paths",
}

__all__ = [
    "DownloadManager",
    "Job",
    "LocalModel",
    "Progress",
    "State",
    "delete",
    "detect_layout",
    "fetch",
    "local",
    "locate",
    "manager",
    "models_dir",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'izwi_lab.artifacts' has no attribute {name!r}")
    value = getattr(importlib.import_module(f"izwi_lab.artifacts.{_HOME[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
