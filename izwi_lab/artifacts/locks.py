"""Locks between processes, so that two programs that want one model do not write over each other."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from izwi_lab.artifacts.atomic import write_error

_POLL_S = 0.2


@contextmanager
def locked(path: Path, *, waiting: Callable[[], None] | None = None) -> Iterator[None]:
    """Hold the lock file `path`; the operating system frees it when a process dies.

    waiting: called a few times a second while somebody else holds it; what it raises ends the wait.

    Raises:
        ArtifactError: the lock file cannot be created.
    """
    from filelock import FileLock, Timeout

    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        lock = FileLock(path, thread_local=False)
        while True:
            try:
                lock.acquire(timeout=_POLL_S, poll_interval=_POLL_S / 4)
                break
            except Timeout:
                if waiting is not None:
                    waiting()
    except OSError as error:
        raise write_error(error, path) from error
    try:
        yield
    finally:
        lock.release()
