"""The torch backend: CPU, CUDA and Apple MPS."""

from __future__ import annotations

import fnmatch
import importlib
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
import torch.overrides

from izwi_lab.artifacts.tensors import AffineTensor, Tensor
from izwi_lab.backends import host, late_torch
from izwi_lab.backends.loading import AFFINE_PARTS, check_names, random_weight, split

_threads_once = threading.Lock()
_threads_chosen = False


def choose_threads() -> None:
    """Set torch's CPU threads once per process, as `host.threads` says."""
    global _threads_chosen
    with _threads_once:
        if _threads_chosen:
            return
        torch.set_num_threads(host.threads())
        _threads_chosen = True


class TorchBackend:
    """torch on one device."""

    name = "torch"
    thread_bound = False

    def __init__(self, device: str = "cpu", dtype: str = "float32") -> None:
        choose_threads()
        self.device = device
        self.dtype = dtype
        self.torch_dtype = getattr(torch, dtype)
        self.late_pools = late_torch.serves(device)

    def array(self, values: np.ndarray, *, dtype: str | None = None) -> torch.Tensor:
        """Host to device; see Backend.array."""
        host = np.ascontiguousarray(values)
        tensor = torch.from_numpy(host if host.flags.writeable else host.copy())
        if tensor.is_floating_point():
            return tensor.to(self.device, getattr(torch, dtype) if dtype else self.torch_dtype)
        return tensor.to(self.device, getattr(torch, dtype) if dtype else None)

    def numpy(self, array: torch.Tensor) -> np.ndarray:
        """Device to host; see Backend.numpy."""
        host = array.detach().to("cpu")
        values: np.ndarray = (host.float() if host.is_floating_point() else host).numpy()
        return values

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
    ) -> torch.nn.Module:
        """Build and load a net; see Backend.net."""
        module = importlib.import_module(f"{package}.torch_net")
        with _Uninitialised(), torch.device("meta"):
            net: torch.nn.Module = getattr(module, cls)(config)
        dense, affine = split(weights or {})
        quantised = bool(affine)
        if quantised:
            from izwi_lab.families.shared.nets.quant.torch_net import use_affine

            use_affine(net, affine, self)
        state: dict[str, torch.Tensor] = {}
        expected = {k: tuple(v.shape) for k, v in net.state_dict().items()}
        if weights is None:
            for name, shape in expected.items():
                wide = any(fnmatch.fnmatchcase(name, p) for p in keep_float32)
                made = random_weight(name, shape, seed, "float32" if wide else self.dtype)
                state[name] = self._dense(name, made, keep_float32)
        else:
            held = {n: s for n, s in expected.items() if not n.endswith(AFFINE_PARTS) or n in dense}
            check_names(held, {k: w.shape for k, w in dense.items()})
            state = {k: self._dense(k, w, keep_float32, keep_stored) for k, w in dense.items()}
        net.load_state_dict(state, strict=not quantised, assign=True)
        state.clear()  # fusing replaces parameters: the ones before must not be held any longer
        for parameter in net.parameters():
            parameter.requires_grad_(False)
        net.eval()
        if hasattr(net, "finalize"):
            with torch.inference_mode():
                net.finalize(self)
        return net

    def _dense(
        self, name: str, weight: Tensor, keep_float32: Sequence[str], keep_stored: Sequence[str] = ()
    ) -> torch.Tensor:
        if weight.dtype == "bfloat16":
            # torch warns on read-only maps; the weights are never written, so the map is shared as it is.
            tensor = _from_mapped(weight.data.view(np.int16)).view(torch.bfloat16)
        else:
            tensor = _from_mapped(weight.data)
        if not tensor.is_floating_point():
            return tensor.to(self.device)
        if self.device == "cpu" and any(fnmatch.fnmatchcase(name, p) for p in keep_stored):
            return tensor
        wide = any(fnmatch.fnmatchcase(name, p) for p in keep_float32)
        return tensor.to(self.device, torch.float32 if wide else self.torch_dtype)

    def parameters(self, net: torch.nn.Module) -> dict[str, tuple[int, ...]]:
        """Parameter shapes by name."""
        return {k: tuple(v.shape) for k, v in net.state_dict().items()}

    def weight(self, net: torch.nn.Module, name: str) -> Tensor:
        """A parameter on the host; see Backend.weight."""
        owner, _, leaf = name.rpartition(".")
        host = getattr(net.get_submodule(owner), leaf).detach().to("cpu")
        if host.dtype == torch.bfloat16:
            return Tensor(host.view(torch.int16).numpy().view(np.uint16), "bfloat16")
        return Tensor.of(host.numpy())

    @contextmanager
    def inference(self) -> Iterator[None]:
        """No gradients."""
        with torch.inference_mode():
            yield

    def evaluate(self, *trees: Any) -> None:
        """Torch is eager: nothing to force."""

    def synchronize(self) -> None:
        """Wait for the device."""
        if self.device.startswith("cuda"):
            torch.cuda.synchronize(self.device)
        elif self.device == "mps":
            torch.mps.synchronize()

    def copy(self, tree: Any) -> Any:
        """Deep copy of the arrays in a tree."""
        if isinstance(tree, torch.Tensor):
            return tree.clone()
        if isinstance(tree, dict):
            return {k: self.copy(v) for k, v in tree.items()}
        if isinstance(tree, (list, tuple)):
            return type(tree)(self.copy(v) for v in tree)
        return tree

    def memory_bytes(self) -> int:
        """Bytes allocated on a CUDA or MPS device; 0 on CPU."""
        if self.device.startswith("cuda"):
            return int(torch.cuda.memory_allocated(self.device))
        return int(torch.mps.current_allocated_memory()) if self.device == "mps" else 0


class _Uninitialised(torch.overrides.TorchFunctionMode):  # type: ignore[misc]
    """Skips torch.nn.init: the weights come after, and filling a meta tensor imports torch's compiler (2 s, 50 MB)."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if getattr(func, "__module__", "") == "torch.nn.init":
            return args[0] if args else (kwargs or {}).get("tensor")
        return func(*args, **(kwargs or {}))


def _from_mapped(array: np.ndarray) -> torch.Tensor:
    if array.size == 0:
        return torch.from_numpy(array.copy())
    contiguous = np.ascontiguousarray(array)
    if contiguous.flags.writeable:
        return torch.from_numpy(contiguous)
    import warnings

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        return torch.from_numpy(contiguous)
