"""The role a backend plays, and the plan that chooses one. Families talk to `Backend` and to nothing below it."""

from __future__ import annotations

import html
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    import numpy as np

    from izwi_lab.artifacts.tensors import AffineTensor, Tensor

Native = Any  # a torch.Tensor or an mlx.core.array
Net = Any  # a torch.nn.Module or an mlx.nn.Module


@dataclass(frozen=True, slots=True)
class Rejection:
    """A backend that was not chosen, and why."""

    backend: str
    device: str
    reason: str


@dataclass(frozen=True, slots=True)
class BackendPlan:
    """Where a model will run and why. `backend` is "torch" or "mlx"; `device` "cpu", "cuda:0", "mps" or "gpu"."""

    backend: str
    device: str
    dtype: str
    reason: str
    quantisation: str = "none"
    memory_bytes: int = 0
    rejected: tuple[Rejection, ...] = ()

    def _rows(self) -> Iterator[tuple[str, str]]:
        yield "runs on", f"{self.backend} on {self.device}, {self.dtype}"
        yield "because", self.reason
        if self.quantisation != "none":
            yield "weights", self.quantisation
        if self.memory_bytes:
            yield "memory", f"{self.memory_bytes / 1e6:,.0f} MB estimated"
        for r in self.rejected:
            yield "not", f"{r.backend} on {r.device}: {r.reason}"

    def __str__(self) -> str:
        """The plan as a small table: where, why, and why not elsewhere."""
        return "\n".join(f"{k:<8} {v}" for k, v in self._rows())

    def _repr_html_(self) -> str:
        """The same table for a notebook; everything in it is escaped."""
        rows = ((html.escape(k), html.escape(v)) for k, v in self._rows())
        cells = "".join(f"<tr><th>{k}</th><td style='text-align:left'>{v}</td></tr>" for k, v in rows)
        return f"<table>{cells}</table>"


class Backend(Protocol):
    """One framework on one device. Native arrays stay inside a family; numpy crosses its boundary.

    thread_bound: unfinished arrays belong to the thread that made them, so a session must stay on one thread.
    late_pools: the memory of a pool of blocks is taken as it is written to, so one may be as large as it will ever be.
    """

    name: str
    device: str
    dtype: str
    thread_bound: bool
    late_pools: bool

    def array(self, values: np.ndarray, *, dtype: str | None = None) -> Native:
        """Host to device. Floats become `dtype` (default: the backend's compute dtype); integers keep theirs."""

    def numpy(self, array: Native) -> np.ndarray:
        """Device to host: float32, or the integer dtype. Waits for the value."""

    def net(
        self,
        package: str,
        cls: str,
        config: Any,
        weights: Mapping[str, Tensor | AffineTensor] | None,
        *,
        keep_float32: Sequence[str] = (),
        keep_stored: Sequence[str] = (),
        seed: int = 0,
    ) -> Net:
        """Build `cls` from `<package>.torch_net` or `.mlx_net` and load canonical weights, strictly.

        weights: our parameter names, torch layout; None fills with seeded random values of sensible scale.
        Floats are stored as the compute dtype except where a name matches a `keep_float32` glob.
        keep_stored: globs of names that may stay in the checkpoint's own float dtype, mapped and not copied, where
        kernels read it directly (torch on CPU); elsewhere they become the compute dtype like the rest.
        After loading, `net.finalize()` is called where defined (fusing, packing, buffers).
        """

    def parameters(self, net: Net) -> dict[str, tuple[int, ...]]:
        """Parameter names and their shapes in canonical (torch) layout; equal on both backends."""

    def weight(self, net: Net, name: str) -> Tensor:
        """A dense parameter of a net on the host, in canonical layout and as held: bfloat16 as its bits."""

    def inference(self) -> AbstractContextManager[None]:
        """Context for running nets: no gradients recorded, the thread count chosen once."""

    def evaluate(self, *trees: Any) -> None:
        """Force lazily computed arrays (MLX); waits for nothing on torch."""

    def synchronize(self) -> None:
        """Wait until the device has finished all queued work."""

    def copy(self, tree: Any) -> Any:
        """A deep copy of the arrays in a nested dict, list or tuple; other leaves are kept."""

    def memory_bytes(self) -> int:
        """Bytes the framework holds on the device now, where it can tell; else 0."""
