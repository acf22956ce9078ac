"""The limit: how fast this machine reads memory, measured like a contender so that it takes turns with the others.

On a processor: a torch sum over 1 GiB of int64 by all cores; where this was written it read as fast as a C++ loop of
AVX-512 loads with prefetching (34 GB/s on two cores, within 3 %). On a GPU: a copy, whose reads and writes both count.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Any

from izwi_lab.bench.contender import Measurement, Workload
from izwi_lab.bench.machine import cores

PASSES = 8  # the best of them is the run


class MemoryRead:
    """backend, device: where the model runs; MLX on a processor reads the same memory as torch there."""

    def __init__(self, *, backend: str, device: str, bytes_read: int = 1 << 30) -> None:
        self._device, self._bytes = device, bytes_read
        self._mlx = backend == "mlx" and device != "cpu"
        self._pass: Callable[[], None]

    def load(self) -> Mapping[str, Any]:
        """Fill the memory: pages that were never written are all one page."""
        self._pass, self._moved = self._on_mlx() if self._mlx else self._on_torch()
        return {"device": self._device, "bytes": self._moved, "passes": PASSES}

    def run(self, workload: Workload) -> Measurement:
        """The best of some passes."""
        best_s = min(self._timed() for _ in range(PASSES))
        return Measurement(total_s=best_s, decode_s=best_s, read_bytes=self._moved)

    def _timed(self) -> float:
        start_s = time.perf_counter()
        self._pass()
        return time.perf_counter() - start_s

    def _on_torch(self) -> tuple[Callable[[], None], int]:
        import torch

        torch.set_num_threads(cores())
        source = torch.ones(self._bytes // 8, dtype=torch.int64, device=self._device)
        if self._device == "cpu":
            return lambda: (source.sum(), None)[1], self._bytes
        target = torch.empty_like(source)
        wait = torch.mps.synchronize if self._device == "mps" else torch.cuda.synchronize

        def copy() -> None:
            target.copy_(source)
            wait()

        return copy, 2 * self._bytes

    def _on_mlx(self) -> tuple[Callable[[], None], int]:
        import mlx.core as mx

        source = mx.ones((self._bytes // 4,), dtype=mx.int32)
        mx.eval(source)
        return lambda: mx.eval(source + 1), 2 * self._bytes
