"""A fake family, three variants of it, and a router that plans without looking at the machine."""

from __future__ import annotations

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
