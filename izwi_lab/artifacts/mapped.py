"""Pages of a mapped file: they count as this process's memory until they are let go."""

from __future__ import annotations

import mmap

SMALL = 1 << 16  # bytes: copying so little is cheaper than the pages that a view of it keeps
_AROUND = 1 << 20  # bytes: a touched page brings its neighbours with it


def release(mapped: object, at: int, nbytes: int) -> None:
    """Let go of the pages of some bytes of a file mapped for reading; touched again, they are read again.

    Does nothing where the system has no such call.
    """
    if isinstance(mapped, mmap.mmap) and hasattr(mapped, "madvise") and hasattr(mmap, "MADV_DONTNEED"):
        start = max(0, at - _AROUND) // mmap.PAGESIZE * mmap.PAGESIZE
        mapped.madvise(mmap.MADV_DONTNEED, start, min(len(mapped), at + nbytes + _AROUND) - start)
