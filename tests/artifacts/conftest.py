"""Homes for models and packages that a test owns, and registries that hold what the test puts there."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from fake_registry import NPM, Shelf

from izwi_lab.artifacts import manager


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Models, packages and hub cache under tmp_path; returns the models folder."""
    for variable in [v for v in os.environ if v.startswith(("PIP_", "HF_", "npm_config"))]:
        monkeypatch.delenv(variable)
    monkeypatch.setenv("IZWI_MODELS_DIR", str(tmp_path / "models"))
    monkeypatch.setenv("IZWI_PACKAGE_CACHE", str(tmp_path / "packages"))
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hf" / "hub"))
    return tmp_path / "models"


@pytest.fixture
def shelf(tmp_path: Path, home: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Shelf]:
    """Registries that hold what the test puts there, and nothing else."""
    wheels, npm, tools = tmp_path / "wheels", tmp_path / "npm", tmp_path / "tools"
    for folder in (wheels, npm, tools):
        folder.mkdir()
    script = tools / "npm"
    script.write_text(NPM.format(python=sys.executable, shelf=str(npm)))
    script.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tools}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(wheels))
    yield Shelf(wheels, npm)
    for gate in npm.glob("*.closed"):
        gate.unlink()
    manager().close()
