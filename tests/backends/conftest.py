"""Fixtures: no setting of the machine that runs the tests, and families as a finished release has them."""

from __future__ import annotations

import pytest

from izwi_lab.catalog import abilities

NO_MLX_NET = "parakeet"
ABSENT = "voxtral"


@pytest.fixture
def clean_environment(monkeypatch, tmp_path):
    """The tests' own home folder and no IZWI_ variable, for tests that read settings."""
    for name in ("BACKEND", "ENABLE_MLX_RUNTIME", "CONFIG", "MODELS_DIR", "NUM_THREADS"):
        monkeypatch.delenv(f"IZWI_{name}", raising=False)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))


@pytest.fixture
def families(monkeypatch):
    """Every family runs on both backends, but one has no MLX net and one is not there."""

    def family_backends(family):
        return {NO_MLX_NET: ("torch",), ABSENT: ()}.get(str(family), ("torch", "mlx"))

    monkeypatch.setattr(abilities, "family_backends", family_backends)
