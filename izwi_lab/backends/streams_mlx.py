"""Streams of MLX's processor build: one operation runs on one thread, so large ones are shared out among streams."""

from __future__ import annotations

from functools import cache

import mlx.core as mx

from izwi_lab.backends import host


@cache
def spare() -> tuple[mx.ThreadLocalStream, ...]:
    """Streams beside the one in use: as many as there are more threads to use than one."""
    return tuple(mx.new_thread_local_stream(mx.cpu) for _ in range(host.threads() - 1))


def shares(size: int, least: int) -> int:
    """Into how many parts work of this size is cut, so that none is smaller than `least`; 1 where it is not."""
    return max(1, min(host.threads(), size // least))
