"""Which devices a model could run on, found without importing torch or mlx.

>>> from izwi_lab.backends.detect import devices
>>> [d.name for d in devices() if d.kind == "cpu"][0]
'cpu'
"""

from __future__ import annotations

import platform
import re
import sys
from dataclasses import dataclass
from functools import cache
from importlib import metadata, util
from pathlib import Path

from izwi_lab.backends import host, nvidia
from izwi_lab.backends.base import Rejection

_MLX_GPU_PACKAGES = ("mlx-cuda-13", "mlx-cuda-12", "mlx-cuda")


@dataclass(frozen=True, slots=True)
class Device:
    """A device that one backend can use now.

    name: as the backend calls it ("cpu", "cuda:0", "mps", "gpu"). kind: "cpu", "cuda", "mps" (Apple GPU through torch)
    or "gpu" (through MLX). memory_bytes and available_bytes: 0 where the system does not tell; on Apple GPUs they are
    the machine's, which is shared. features: instruction sets, or the compute capability as "sm_90".
    version: of the backend. label: the hardware's own name.
    """

    name: str
    kind: str
    backend: str
    memory_bytes: int
    available_bytes: int
    features: tuple[str, ...] = ()
    version: str = ""
    label: str = ""


@dataclass(frozen=True, slots=True)
class Survey:
    """What a look around found: usable devices in order of preference, and what is missing, with the reason."""

    devices: tuple[Device, ...]
    missing: tuple[Rejection, ...]


@dataclass(frozen=True, slots=True)
class TorchBuild:
    """The installed torch, read from its version.py. cuda: the CUDA version it was built for, None for others."""

    version: str
    cuda: str | None


def devices() -> tuple[Device, ...]:
    """The devices that can be used now, the fastest kind first. Memory is read anew at each call."""
    return survey().devices


def survey() -> Survey:
    """Every device that can be used, and every backend that cannot, with its reason."""
    found: list[Device] = []
    missing: list[Rejection] = []
    for look in (_torch_cuda, _mlx_gpu, _torch_mps, _torch_cpu, _mlx_cpu):
        result = look()
        if isinstance(result, Rejection):
            missing.append(result)
        else:
            found.extend(result)
    return Survey(tuple(found), tuple(missing))


@cache
def torch_build() -> TorchBuild | None:
    """The installed torch, or None. Reads its version.py as text."""
    spec = util.find_spec("torch")
    if spec is None or spec.origin is None:
        return None
    file = Path(spec.origin).with_name("version.py")
    return read_torch_version(file.read_text("utf-8")) if file.is_file() else None


def read_torch_version(text: str) -> TorchBuild:
    """Version and CUDA version from the text of torch/version.py."""
    version = re.search(r"^__version__\s*(?::[^=]*)?=\s*['\"]([^'\"]+)", text, re.M)
    cuda = re.search(r"^cuda\s*(?::[^=]*)?=\s*['\"]([^'\"]+)", text, re.M)
    return TorchBuild(version[1] if version else "unknown", cuda[1] if cuda else None)


@cache
def mlx_version() -> str | None:
    """The installed MLX's version, or None."""
    return _version("mlx") if util.find_spec("mlx") is not None else None


def _torch_cuda() -> list[Device] | Rejection:
    torch = torch_build()
    if torch is None:
        return Rejection("torch", "cuda", "torch is not installed: pip install 'izwi-lab[torch]'")
    gpus = nvidia.visible_gpus()
    if not gpus:
        return Rejection("torch", "cuda", nvidia.why_none())
    if torch.cuda is None:
        return Rejection(
            "torch", "cuda", f"torch {torch.version} is built without CUDA; a CUDA build sees {gpus[0].name}"
        )
    return [
        Device(
            name=f"cuda:{i}",
            kind="cuda",
            backend="torch",
            memory_bytes=gpu.memory_bytes,
            available_bytes=gpu.available_bytes,
            features=gpu.features,
            version=torch.version,
            label=gpu.name,
        )
        for i, gpu in enumerate(gpus)
    ]


def _torch_mps() -> list[Device] | Rejection:
    torch = torch_build()
    if not _apple_silicon():
        return Rejection("torch", "mps", "this machine is no Apple-silicon Mac")
    if torch is None:
        return Rejection("torch", "mps", "torch is not installed: pip install 'izwi-lab[torch]'")
    memory = host.memory()
    return [
        Device("mps", "mps", "torch", memory.total_bytes, memory.available_bytes, (), torch.version, host.cpu_name())
    ]


def _torch_cpu() -> list[Device] | Rejection:
    torch = torch_build()
    if torch is None:
        return Rejection("torch", "cpu", "torch is not installed: pip install 'izwi-lab[torch]'")
    return [_cpu("torch", torch.version)]


def _mlx_gpu() -> list[Device] | Rejection:
    version = mlx_version()
    if version is None:
        return Rejection("mlx", "gpu", "mlx is not installed: pip install 'izwi-lab[mlx]'")
    memory = host.memory()
    if _apple_silicon():
        return [Device("gpu", "gpu", "mlx", memory.total_bytes, memory.available_bytes, (), version, host.cpu_name())]
    if not any(_version(p) for p in _MLX_GPU_PACKAGES):
        return Rejection("mlx", "gpu", "this MLX has no GPU: it needs an Apple-silicon Mac or the mlx-cuda packages")
    gpus = nvidia.visible_gpus()
    if not gpus:
        return Rejection("mlx", "gpu", nvidia.why_none())
    gpu = gpus[0]
    return [Device("gpu", "gpu", "mlx", gpu.memory_bytes, gpu.available_bytes, gpu.features, version, gpu.name)]


def _mlx_cpu() -> list[Device] | Rejection:
    version = mlx_version()
    if version is None:
        return Rejection("mlx", "cpu", "mlx is not installed: pip install 'izwi-lab[mlx]'")
    if not _mlx_core_installed():
        return Rejection("mlx", "cpu", "mlx is installed without its library: pip install 'izwi-lab[mlx]'")
    return [_cpu("mlx", version)]


def _cpu(backend: str, version: str) -> Device:
    memory = host.memory()
    label = f"{host.cpu_name()}, {host.cores()} cores"
    return Device(
        "cpu", "cpu", backend, memory.total_bytes, memory.available_bytes, host.cpu_features(), version, label
    )


def _mlx_core_installed() -> bool:
    """On Linux `pip install mlx` alone leaves the library out: mlx-cpu or mlx-cuda bring it, conda keeps it in lib."""
    spec = util.find_spec("mlx")
    folders = [Path(p) / "lib" for p in (spec.submodule_search_locations or ())] if spec else []
    return any(f.name.startswith("libmlx.") for d in (*folders, Path(sys.prefix) / "lib") for f in d.glob("libmlx.*"))


def _apple_silicon() -> bool:
    return platform.system() == "Darwin" and platform.machine() == "arm64"


def _version(distribution: str) -> str | None:
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return None
