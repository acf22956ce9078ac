"""Looking inside a model: logit lens, attention patterns, caches; and a tiny speech model to look into.

Nothing here is imported until it is asked for. Tables need pandas and plots matplotlib: `izwi-lab[lab]`.
"""

from __future__ import annotations

import importlib
from typing import Any

_HOME = {
    "logit_lens": "izwi_lab.lab.lens",
    "LogitLens": "izwi_lab.lab.lens",
    "LensToken": "izwi_lab.lab.lens",
    "attention": "izwi_lab.lab.patterns",
    "AttentionPatterns": "izwi_lab.lab.patterns",
    "cache_table": "izwi_lab.lab.caches",
    "tiny_tts": "izwi_lab.lab.tiny_speech",
}

__all__ = sorted(_HOME)


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'izwi_lab.lab' has no attribute {name!r}")
    return getattr(importlib.import_module(_HOME[name]), name)


def __dir__() -> list[str]:
    return list(__all__)
