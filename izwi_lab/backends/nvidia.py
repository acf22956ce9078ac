"""NVIDIA GPUs as the driver tells them: nvidia-smi, or /proc/driver/nvidia where that is missing. No CUDA is loaded."""

from __future__ import annotations

import os
import threading
import time
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

from izwi_lab.backends.host import output_of

_QUERY = "index,uuid,name,memory.total,memory.free,compute_cap"
_PROC = Path("/proc/driver/nvidia/gpus")
_FRESH_S = 2.0  # nvidia-smi takes 0.05 to 1 s: an answer serves the calls that follow at once

_lock = threading.Lock()
_answer: tuple[float, tuple[Gpu, ...]] | None = None


@dataclass(frozen=True, slots=True)
class Gpu:
    """One GPU. Memory is 0 where the driver did not tell; capability is "9.0" for Hopper, empty where unknown."""

    index: int
    uuid: str
    name: str
    memory_bytes: int = 0
    available_bytes: int = 0
    capability: str = ""

    @property
    def features(self) -> tuple[str, ...]:
        """The compute capability as ("sm_90",)."""
        return (f"sm_{self.capability.replace('.', '')}",) if self.capability else ()


def gpus() -> tuple[Gpu, ...]:
    """All GPUs the driver shows, in its order. An answer is kept for two seconds."""
    global _answer
    with _lock:
        if _answer is None or time.monotonic() - _answer[0] > _FRESH_S:
            _answer = (time.monotonic(), _from_smi() or _from_proc(_PROC))
        return _answer[1]


def visible_gpus() -> tuple[Gpu, ...]:
    """The GPUs this process may use: CUDA_VISIBLE_DEVICES is obeyed.

    Their order is that of the PCI bus. CUDA puts the fastest first unless CUDA_DEVICE_ORDER=PCI_BUS_ID is set, which
    matters only where GPUs of different kinds are in one machine.
    """
    return select_visible(gpus(), os.environ.get("CUDA_VISIBLE_DEVICES"))


def why_none() -> str:
    """Why `visible_gpus()` is empty."""
    found = gpus()
    if found:
        return f"CUDA_VISIBLE_DEVICES={os.environ.get('CUDA_VISIBLE_DEVICES', '')!r} hides {len(found)} NVIDIA GPU(s)"
    return "no NVIDIA GPU: the driver is not installed or shows none"


def select_visible(found: tuple[Gpu, ...], setting: str | None) -> tuple[Gpu, ...]:
    """Apply CUDA_VISIBLE_DEVICES as CUDA does: a list of indices or UUID starts, cut at the first that is none."""
    if setting is None:
        return found
    chosen: list[Gpu] = []
    for part in (p.strip() for p in setting.split(",")):
        if part.startswith("MIG-") and found:  # a slice: how much of the memory it has is not told
            match = [replace(found[0], uuid=part, name=f"{found[0].name} (MIG)", memory_bytes=0, available_bytes=0)]
        else:
            match = [g for g in found if _names(part, g)]
        if len(match) != 1 or match[0] in chosen:
            break
        chosen.append(match[0])
    return tuple(chosen)


def _names(part: str, gpu: Gpu) -> bool:
    return part == str(gpu.index) or (part.startswith("GPU-") and gpu.uuid.startswith(part))


def parse_smi(text: str) -> tuple[Gpu, ...]:
    """nvidia-smi's csv: index, uuid, name, MiB total, MiB free, capability. Lines of another form are left out."""
    rows: list[Gpu] = []
    for line in text.splitlines():
        cells = [c.strip() for c in line.split(",")]
        if len(cells) != 6 or not cells[0].isdigit():
            continue
        index, uuid, name, total, free, capability = cells
        known = capability if capability.replace(".", "").isdigit() else ""
        rows.append(Gpu(int(index), uuid, name, _mib(total), _mib(free), known))
    return tuple(rows)


def _from_smi() -> tuple[Gpu, ...]:
    text = output_of("nvidia-smi", f"--query-gpu={_QUERY}", "--format=csv,noheader,nounits")
    return parse_smi(text) if text else ()


def _from_proc(folder: Path) -> tuple[Gpu, ...]:
    """Names and UUIDs only: the driver's files do not tell memory or capability."""
    found: list[Gpu] = []
    with suppress(OSError):
        for index, file in enumerate(sorted(folder.glob("*/information"))):
            lines = file.read_text("utf-8", errors="replace").splitlines()
            facts = {k.strip(): v.strip() for k, _, v in (line.partition(":") for line in lines)}
            found.append(Gpu(index, facts.get("GPU UUID", ""), facts.get("Model", "NVIDIA GPU")))
    return tuple(found)


def _mib(cell: str) -> int:
    return int(cell) * 2**20 if cell.isdigit() else 0
