"""Zeros that take memory when they are written to."""

from __future__ import annotations

import gc
import mmap

import pytest
import torch

from izwi_lab.backends import late_torch
from izwi_lab.bench.worker import resident_bytes

pytestmark = pytest.mark.skipif(not late_torch.AVAILABLE, reason="this system counts such memory as taken at once")
GB = 1 << 30


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.int8])
def test_they_are_zeros_that_can_be_written(dtype):
    made = late_torch.zeros((1, 3, 5000, 64), dtype)
    assert made.shape == (1, 3, 5000, 64) and made.dtype == dtype and not made.any()
    made[:, 1, 7] = 5
    assert made.float().sum() == 5 * 64 and made.is_contiguous() and made.data_ptr() % 64 == 0


def test_memory_is_taken_as_it_is_written_and_given_back():
    gc.collect()
    before = resident_bytes()
    made = late_torch.zeros((GB,), torch.int8)
    assert resident_bytes() - before < GB / 64
    made[: GB // 16] = 1
    assert GB / 17 < resident_bytes() - before < GB / 8
    del made
    assert resident_bytes() - before < GB / 64


def test_a_system_without_huge_pages_will_do(monkeypatch):
    class Plain(mmap.mmap):
        def madvise(self, *_):
            raise OSError(22, "Invalid argument")

    monkeypatch.setattr(late_torch.mmap, "mmap", Plain)
    assert not late_torch.zeros((3, 4), torch.float32).any()


def test_nothing_and_too_much():
    assert late_torch.zeros((2, 0), torch.float32).shape == (2, 0)
    with pytest.raises(MemoryError, match="no room for"):
        late_torch.zeros((1 << 50,), torch.float32)
