"""A backend on the processor, by name; MLX is skipped where it is not installed."""

from __future__ import annotations

from typing import Any

import pytest


def open_backend(name: str, dtype: str = "float32") -> Any:
    if name == "torch":
        from izwi_lab.backends.torch_backend import TorchBackend

        return TorchBackend("cpu", dtype)
    pytest.importorskip("mlx.core")
    from izwi_lab.backends.mlx_backend import MLXBackend

    return MLXBackend("cpu", dtype)
