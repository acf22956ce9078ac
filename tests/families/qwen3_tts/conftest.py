"""Fixtures for the tiny Qwen3-TTS models."""

from __future__ import annotations

import pytest
import torch

from izwi_lab.backends.torch_backend import TorchBackend


@pytest.fixture(scope="module")
def one_thread():
    """So small a net only waits for a second thread."""
    TorchBackend()  # chooses a number of threads, once
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
