"""Where models run: detection, the router that plans, and the torch and MLX backends behind one Protocol.

Importing this imports neither framework; `open_backend` imports the one that a plan names.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from izwi_lab.errors import BackendUnavailableError, MissingExtraError

if TYPE_CHECKING:
    from izwi_lab.backends.base import Backend, BackendPlan

__all__ = ["open_backend"]


def open_backend(plan: BackendPlan) -> Backend:
    """The backend that a plan names, ready to build nets. Imports its framework.

    Raises:
        MissingExtraError: the framework is not installed.
        BackendUnavailableError: there is no backend of that name.
    """
    try:
        if plan.backend == "torch":
            from izwi_lab.backends.torch_backend import TorchBackend

            return TorchBackend(plan.device, plan.dtype)
        if plan.backend == "mlx":
            from izwi_lab.backends.mlx_backend import MLXBackend

            return MLXBackend(plan.device, plan.dtype)
    except ModuleNotFoundError as missing:
        if (missing.name or "").partition(".")[0] == plan.backend:
            raise MissingExtraError(plan.backend, plan.backend) from missing
        raise
    raise BackendUnavailableError(
        f"There is no backend {plan.backend!r}.", hint="Backends: torch, mlx. Let BackendRouter.select make the plan."
    )
