"""A fake family, three variants of it, a router that plans without looking at the machine, and what tests ask of an
engine on it.
"""

from __future__ import annotations

import time

import numpy as np

from izwi_lab.audio import Audio
from izwi_lab.backends.base import BackendPlan
from izwi_lab.catalog.variant import Layout, ModelVariant, Task


def make_variant(id: str, task: Task = Task.TTS, size_bytes: int = 100, **settings: object) -> ModelVariant:
    return ModelVariant(
        id=id,
        display_name=id,
        repo=f"tests/{id}",
        family="fakefam",
        tasks=(task,),
        layout=Layout.HF,
        size_bytes=size_bytes,
        settings=settings,
    )


class FakeRouter:
    """Plans for the backend that was asked for, else a torch that is free of threads."""

    def __init__(self, config: object = None) -> None:
        pass

    def select(self, variant, *, backend=None, device=None, dtype=None, context=None) -> BackendPlan:
        return BackendPlan(backend or "torch", device or "cpu", dtype or "float32", "for a test")


CLIP = Audio.from_samples(np.linspace(-0.5, 0.5, 1600, dtype=np.float32), 16000)


def expected(variant, text: str) -> np.ndarray:
    """What only this variant says for this text."""
    levels = [sum(map(ord, variant.id + word)) % 97 / 100 for word in text.split()]
    return np.repeat(np.asarray(levels, np.float32), 80)


def wait_for(condition, seconds: float = 5.0) -> None:
    ends = time.monotonic() + seconds
    while not condition() and time.monotonic() < ends:
        time.sleep(0.005)
    assert condition()


def in_use(engine) -> int:
    return sum(m.in_use for m in engine.loaded())
