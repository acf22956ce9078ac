"""The host's memory and CPU, read from the system and from nothing heavier than a text file."""

from __future__ import annotations

import ctypes
import os
import platform
import subprocess
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from izwi_lab import settings

_X86_FEATURES = ("avx2", "avx512f", "avx512_bf16", "avx512_vnni", "avx_vnni", "amx_bf16", "amx_int8")
_ARM_FEATURES = {"asimd": "neon", "asimddp": "dotprod", "bf16": "bf16", "i8mm": "i8mm", "sve": "sve"}
_DARWIN_FEATURES = {"FEAT_DotProd": "dotprod", "FEAT_BF16": "bf16", "FEAT_I8MM": "i8mm"}
_CGROUPS = (
    ("memory.max", "memory.current"),  # cgroup v2
    ("memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes"),  # cgroup v1
)
_TIMEOUT_S = 5.0


@dataclass(frozen=True, slots=True)
class Memory:
    """Bytes this process can have in all and now; 0 where the system does not tell."""

    total_bytes: int
    available_bytes: int


def memory(root: Path = Path("/")) -> Memory:
    """Host memory, no more than the container is allowed. `root` stands for / in tests."""
    found = _meminfo(root / "proc/meminfo") or _sysconf()
    return _within_cgroup(found, root / "sys/fs/cgroup")


def return_freed_memory() -> None:
    """Give the system back what was freed: glibc keeps blocks below 32 MB, which after a load is half a model."""
    with suppress(OSError, AttributeError):  # another C library, which has no such call
        ctypes.CDLL(None).malloc_trim(0)


def cores() -> int:
    """CPU cores this process may run on."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def threads() -> int:
    """Threads to compute with: IZWI_NUM_THREADS or the configuration file, else one for each usable core."""
    return settings.load().threads or cores()


@cache
def cpu_features() -> tuple[str, ...]:
    """The instruction sets that matter for speed here, such as avx512_bf16 or neon."""
    if platform.system() == "Darwin":
        return _darwin_features()
    with suppress(OSError):
        return features_of(Path("/proc/cpuinfo").read_text("utf-8", errors="replace"))
    return ()


@cache
def cpu_name() -> str:
    """The CPU's model name, or its architecture where the system does not tell."""
    with suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text("utf-8", errors="replace").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def features_of(cpuinfo: str) -> tuple[str, ...]:
    """The features named in the text of /proc/cpuinfo (x86 "flags", Arm "Features"), in a fixed order."""
    for line in cpuinfo.splitlines():
        key, _, value = line.partition(":")
        words = set(value.split())
        if key.strip() == "flags":
            return tuple(f for f in _X86_FEATURES if f in words)
        if key.strip() == "Features":
            return tuple(name for word, name in _ARM_FEATURES.items() if word in words)
    return ()


def has_fast_bfloat16(features: tuple[str, ...]) -> bool:
    """Whether the CPU multiplies bfloat16 in hardware on the paths torch uses."""
    return "avx512_bf16" in features or "amx_bf16" in features


def output_of(*command: str) -> str | None:
    """What a small system command prints, or None when it is missing, fails or hangs."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=_TIMEOUT_S, check=True)
    except (OSError, subprocess.SubprocessError, UnicodeDecodeError):
        return None
    return done.stdout


def _darwin_features() -> tuple[str, ...]:
    if platform.machine() != "arm64":
        return ()
    lines = (output_of("sysctl", "hw.optional.arm") or "").splitlines()
    on = {line.partition(":")[0].rpartition(".")[2] for line in lines if line.rstrip().endswith(": 1")}
    return ("neon", *(name for word, name in _DARWIN_FEATURES.items() if word in on))


def _meminfo(path: Path) -> Memory | None:
    try:
        lines = path.read_text("utf-8").splitlines()
    except (OSError, UnicodeDecodeError):
        return None
    kib = {key: value.split()[0] for key, _, value in (line.partition(":") for line in lines) if value.split()}
    try:
        total = int(kib["MemTotal"]) * 1024
        return Memory(total, int(kib.get("MemAvailable", kib.get("MemFree", "0"))) * 1024)
    except (KeyError, ValueError):
        return None


def _sysconf() -> Memory:
    """Total memory where there is no /proc; what is free is not told there, so the total stands for it."""
    with suppress(AttributeError, ValueError, OSError):
        total = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
        return Memory(total, total)
    return Memory(0, 0)


def _within_cgroup(found: Memory, folder: Path) -> Memory:
    for limit_name, usage_name in _CGROUPS:
        with suppress(OSError, ValueError):
            limit = int((folder / limit_name).read_text("ascii"))  # "max" is no number: no limit
            used = int((folder / usage_name).read_text("ascii"))
            if 0 < limit < found.total_bytes:
                return Memory(limit, max(0, min(found.available_bytes, limit - used)))
    return found
