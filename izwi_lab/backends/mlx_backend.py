"""The MLX backend: Apple GPUs, and CPUs where the MLX CPU build is installed."""

from __future__ import annotations

import fnmatch
import importlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np
from mlx.utils import tree_flatten, tree_unflatten

from izwi_lab.artifacts.tensors import AffineTensor, Tensor
from izwi_lab.backends.loading import AFFINE_PARTS, check_names, random_weight, split

# Canonical (torch) axes -> MLX axes, by the class of the module that owns the weight.
_AXES = {nn.Conv1d: (0, 2, 1), nn.Conv2d: (0, 2, 3, 1), nn.ConvTranspose1d: (1, 2, 0), nn.ConvTranspose2d: (1, 2, 3, 0)}


class MLXBackend:
    """MLX on its default device."""

    name = "mlx"
    thread_bound = True  # unfinished arrays belong to the thread that made them
    late_pools = False

    def __init__(self, device: str = "gpu", dtype: str = "float32") -> None:
        self.device = device
        self.dtype = dtype
        self.mlx_dtype = getattr(mx, dtype)
        self._mx_device = mx.Device(mx.DeviceType.gpu if device == "gpu" else mx.DeviceType.cpu)

    def array(self, values: np.ndarray, *, dtype: str | None = None) -> mx.array:
        """Host to device; see Backend.array."""
        out = mx.array(values)
        if mx.issubdtype(out.dtype, mx.floating):
            return out.astype(getattr(mx, dtype) if dtype else self.mlx_dtype)
        return out.astype(getattr(mx, dtype)) if dtype else out

    def numpy(self, array: mx.array) -> np.ndarray:
        """Device to host; see Backend.numpy."""
        wide = array.astype(mx.float32) if mx.issubdtype(array.dtype, mx.floating) else array
        return np.array(wide)

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
    ) -> nn.Module:
        """Build and load a net; see Backend.net."""
        module = importlib.import_module(f"{package}.mlx_net")
        net: nn.Module = getattr(module, cls)(config)
        dense, affine = split(weights or {})
        if affine:
            from izwi_lab.families.shared.nets.quant.mlx_net import use_affine

            use_affine(net, affine, self)
        axes = _axes_by_name(net)
        expected = self._shapes(net, axes)
        if weights is None:
            given: Mapping[str, Tensor] = _Made(expected, seed, self.dtype, keep_float32)
        else:
            held = {n: s for n, s in expected.items() if not n.endswith(AFFINE_PARTS) or n in dense}
            check_names(held, {k: w.shape for k, w in dense.items()})
            given = dense
        loaded = [(k, self._dense(k, given[k], axes.get(k), keep_float32)) for k in given]
        net.update(tree_unflatten(loaded))
        net.eval()
        net.freeze()
        if hasattr(net, "finalize"):
            net.finalize(self)
        mx.eval(*_held(net))  # no array may wait for the thread that loads
        return net

    def _dense(self, name: str, weight: Tensor, axes: tuple[int, ...] | None, keep_float32: Sequence[str]) -> mx.array:
        if weight.dtype == "bfloat16":
            out = mx.array(np.ascontiguousarray(weight.data)).view(mx.bfloat16)
        else:
            out = mx.array(np.ascontiguousarray(weight.data))
        if axes is not None:
            out = mx.contiguous(out.transpose(axes))
        if not mx.issubdtype(out.dtype, mx.floating):
            return out
        wide = any(fnmatch.fnmatchcase(name, p) for p in keep_float32)
        return out.astype(mx.float32 if wide else self.mlx_dtype)

    def parameters(self, net: nn.Module) -> dict[str, tuple[int, ...]]:
        """Parameter shapes by name, in canonical (torch) layout."""
        return self._shapes(net, _axes_by_name(net))

    def _shapes(self, net: nn.Module, axes: Mapping[str, tuple[int, ...]]) -> dict[str, tuple[int, ...]]:
        out: dict[str, tuple[int, ...]] = {}
        for name, value in tree_flatten(net.parameters()):
            shape = tuple(value.shape)
            if order := axes.get(name):
                canonical = [0] * len(shape)
                for here, there in enumerate(order):
                    canonical[there] = shape[here]
                shape = tuple(canonical)
            out[name] = shape
        return out

    def weight(self, net: nn.Module, name: str) -> Tensor:
        """A parameter on the host; see Backend.weight."""
        value: Any = net
        for part in name.split("."):
            value = value[int(part)] if isinstance(value, (list, tuple)) else value[part]
        if axes := _axes_by_name(net).get(name):
            value = value.transpose([axes.index(i) for i in range(len(axes))])
        if value.dtype == mx.bfloat16:
            return Tensor(np.array(value.view(mx.uint16)), "bfloat16")
        return Tensor.of(np.array(value))

    @contextmanager
    def inference(self) -> Iterator[None]:
        """Run on this backend's device."""
        with mx.stream(self._mx_device):
            yield

    def evaluate(self, *trees: Any) -> None:
        """Compute the arrays in the trees now."""
        mx.eval(*trees)

    def synchronize(self) -> None:
        """Wait for the device."""
        mx.synchronize()

    def copy(self, tree: Any) -> Any:
        """Deep copy of the arrays in a tree (MLX arrays are replaced, not written, except by slice update)."""
        if isinstance(tree, mx.array):
            return mx.array(tree)
        if isinstance(tree, dict):
            return {k: self.copy(v) for k, v in tree.items()}
        if isinstance(tree, (list, tuple)):
            return type(tree)(self.copy(v) for v in tree)
        return tree

    def memory_bytes(self) -> int:
        """Bytes MLX holds."""
        return int(mx.get_active_memory())


class _Made(Mapping[str, Tensor]):
    """Random weights by name, made when they are asked for and not kept."""

    def __init__(
        self, shapes: Mapping[str, tuple[int, ...]], seed: int, dtype: str, keep_float32: Sequence[str]
    ) -> None:
        self._shapes, self._seed, self._dtype, self._wide = shapes, seed, dtype, keep_float32

    def __getitem__(self, name: str) -> Tensor:
        wide = any(fnmatch.fnmatchcase(name, p) for p in self._wide)
        return random_weight(name, self._shapes[name], self._seed, "float32" if wide else self._dtype)

    def __iter__(self) -> Iterator[str]:
        return iter(self._shapes)

    def __len__(self) -> int:
        return len(self._shapes)


def _held(net: nn.Module) -> Iterator[mx.array]:
    """Every array that the modules of a net hold: parameters, and what `finalize` made of them."""
    for module in net.modules():
        yield from _arrays(dict(module))
        yield from _arrays(vars(module))


def _arrays(value: Any) -> Iterator[mx.array]:
    if isinstance(value, mx.array):
        yield value
    elif isinstance(value, Mapping) and not isinstance(value, nn.Module):
        for part in value.values():
            yield from _arrays(part)
    elif isinstance(value, (list, tuple)):
        for part in value:
            yield from _arrays(part)


def _axes_by_name(net: nn.Module) -> dict[str, tuple[int, ...]]:
    """Weight name -> axes from canonical to MLX layout, declared by the class of the module that owns it."""
    return {
        f"{path}.weight" if path else "weight": axes
        for path, m in net.named_modules()
        for cls, axes in _AXES.items()
        if isinstance(m, cls)
    }
