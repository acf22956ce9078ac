"""Engines that run the fake family on fake backends."""

from __future__ import annotations

import importlib
from pathlib import Path
from types import SimpleNamespace

import pytest
from runtime_fakes import FakeRouter, make_variant

from izwi_lab import families
from izwi_lab.catalog.variant import ModelVariant, Task
from izwi_lab.runtime import load, model_router
from izwi_lab.runtime.service import InferenceEngine
from izwi_lab.settings import Settings

HERE = Path(__file__).parent


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch):
    """The fake family's Script; its backend "bound" must stay on one thread, like MLX."""
    monkeypatch.setattr(families, "__path__", [*families.__path__, str(HERE / "fake_families")])
    monkeypatch.setattr(model_router, "BackendRouter", FakeRouter)
    monkeypatch.setattr(load, "_backends", {})
    monkeypatch.setattr(
        load.backends,
        "open_backend",
        lambda plan: SimpleNamespace(
            name=plan.backend, device=plan.device, dtype=plan.dtype, thread_bound=plan.backend == "bound"
        ),
    )
    module = importlib.import_module("izwi_lab.families.fakefam.model")
    monkeypatch.setattr(module, "script", module.Script())
    return module.script


@pytest.fixture
def make_engine(fake):
    """Engines that load fakes without files, closed at the end."""
    made: list[InferenceEngine] = []

    def make(**options: object) -> InferenceEngine:
        made.append(InferenceEngine(load_format="dummy", config=Settings(), **options))
        return made[-1]

    yield make
    for engine in made:
        engine.close()


@pytest.fixture
def tts() -> ModelVariant:
    return make_variant("voice-a")


@pytest.fixture
def tts_b() -> ModelVariant:
    return make_variant("voice-b")


@pytest.fixture
def asr() -> ModelVariant:
    return make_variant("ear", Task.ASR)


@pytest.fixture
def chat() -> ModelVariant:
    return make_variant("mouth", Task.CHAT)
