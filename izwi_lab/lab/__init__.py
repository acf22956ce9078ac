"""Looking inside a model: logit lens, attention patterns, caches; and a tiny speech model to look into.

And inside an engine, at what `engine.explain(model)` gives: timeline, block map, prefix tree, metrics.

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
    "timeline": "izwi_lab.lab.engine_steps",
    "block_map": "izwi_lab.lab.engine_blocks",
    "prefix_tree": "izwi_lab.lab.engine_prefixes",
    "metrics_table": "izwi_lab.lab.engine_metrics",
}

__all__ = sorted(_HOME)


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'izwi_lab.lab' has no attribute {name!r}")
    return getattr(importlib.import_module(_HOME[name]), name)


def __dir__() -> list[str]:
    return list(__all__)
