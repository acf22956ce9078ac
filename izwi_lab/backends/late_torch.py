"""Zeros whose memory the system gives page by page, as they are written to: room for what may never come.

A cache that grows by being copied into a larger one stops everybody for as long as that takes (0.7 s at a gigabyte).
"""

from __future__ import annotations

import math
import mmap
from contextlib import suppress

import torch

AVAILABLE = hasattr(mmap, "MAP_PRIVATE")  # not on Windows, which counts such memory as taken at once


def serves(device: str) -> bool:
    """Whether memory of a device is given page by page."""
    return device == "cpu" and AVAILABLE


def zeros(shape: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
    """A tensor of zeros on the CPU; it takes address space alone until somebody writes to it.

    Raises MemoryError where there is not even that.
    """
    count = math.prod(shape)
    if not count:
        return torch.zeros(shape, dtype=dtype)
    try:
        pages = mmap.mmap(-1, count * dtype.itemsize, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    except OSError as error:
        raise MemoryError(f"There is no room for {count * dtype.itemsize} bytes of caches: {error}") from error
    with suppress(AttributeError, OSError):  # a hint, which not every system knows
        # Huge pages would have a few positions of each head and layer take 2 MB each.
        pages.madvise(mmap.MADV_NOHUGEPAGE)
    return torch.frombuffer(pages, dtype=dtype, count=count).view(shape)  # which keeps the pages
