"""Measuring: speed beside a peer, memory, and word errors. Nothing here is imported until it is asked for."""

from __future__ import annotations

import importlib
from typing import Any

_HOME = {
    "word_error_rate": "izwi_lab.bench.wer",
    "character_error_rate": "izwi_lab.bench.wer",
    "align_words": "izwi_lab.bench.wer",
    "normalise_words": "izwi_lab.bench.wer",
    "Alignment": "izwi_lab.bench.wer",
    "ContenderSpec": "izwi_lab.bench.contender",
    "Measurement": "izwi_lab.bench.contender",
    "Workload": "izwi_lab.bench.contender",
    "Plan": "izwi_lab.bench.harness",
    "run_in_turn": "izwi_lab.bench.harness",
    "Record": "izwi_lab.bench.record",
}

__all__ = sorted(_HOME)


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'izwi_lab.bench' has no attribute {name!r}")
    return getattr(importlib.import_module(_HOME[name]), name)


def __dir__() -> list[str]:
    return list(__all__)
