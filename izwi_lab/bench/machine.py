"""What a timing was taken on: processor, memory, accelerators, package versions, source revision, command line."""

from __future__ import annotations

import contextlib
import os
import platform
import re
import shutil
import subprocess
import sys
from collections.abc import Iterable, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

_SOURCE = Path(__file__).resolve().parents[2]


def machine() -> dict[str, Any]:
    """The machine, without its name or any path of it."""
    return {
        "processor": _processor(),
        "cores": cores(),
        "memory_bytes": _memory_bytes(),
        "accelerators": _accelerators(),
        "system": f"{platform.system()} {platform.release()} {platform.machine()}",
        "python": platform.python_version(),
        "load_average": round(os.getloadavg()[0], 2),
    }


def cores() -> int:
    """Processors this process may run on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def busy_s() -> float | None:
    """Processor seconds used by all programs since the machine started; None where the system does not tell."""
    stat = Path("/proc/stat")
    if not stat.exists():
        return None
    user, nice, system, _idle, _wait, *interrupts = map(int, stat.read_text().splitlines()[0].split()[1:8])
    return (user + nice + system + sum(interrupts)) / os.sysconf("SC_CLK_TCK")


def revision() -> dict[str, Any]:
    """The commit of the source this package runs from, and whether files differ from it; empty outside git."""
    commit = _output(["git", "-C", str(_SOURCE), "rev-parse", "HEAD"])
    if not re.fullmatch(r"[0-9a-f]{40,64}", commit):
        return {}
    changed = _output(["git", "-C", str(_SOURCE), "status", "--porcelain", "--", "izwi_lab", "benchmarks/*.py"])
    return {"commit": commit, "modified": bool(changed)}


def versions(imported: Iterable[str]) -> dict[str, str]:
    """Versions of the distributions that the imported top-level packages belong to."""
    owners = metadata.packages_distributions()
    names = {name for package in imported for name in owners.get(package, ())}
    found = {}
    for name in sorted(names, key=str.lower):
        with contextlib.suppress(metadata.PackageNotFoundError):
            found[name] = metadata.version(name)
    return found


def command_line(argv: Sequence[str] | None = None) -> str:
    """How this process was started, with folders of this machine cut from it."""
    argv = list(sys.argv if argv is None else argv)
    return " ".join([Path(argv[0]).name, *(portable(arg) for arg in argv[1:])]) if argv else ""


def portable(text: str) -> str:
    """`text` with this machine's folders shortened: the working folder and the source to ".", home to "~"."""
    for folder, short in ((str(_SOURCE), "."), (str(Path.cwd()), "."), (str(Path.home()), "~")):
        if len(folder) > 1:
            text = text.replace(folder, short)
    # What is left of absolute paths keeps its last part only.
    return re.sub(r"(?<![\w.~/:])/(?:[\w.+@-]+/)+", "…/", text)


def _processor() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        for line in cpuinfo.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    if sys.platform == "darwin":
        return _output(["sysctl", "-n", "machdep.cpu.brand_string"])
    return platform.processor()


def _memory_bytes() -> int:
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def _accelerators() -> list[str]:
    query = ["nvidia-smi", "--query-gpu=name,memory.total", "--format=csv,noheader"]
    return [line.strip() for line in _output(query).splitlines() if line.strip()]


def _output(command: list[str]) -> str:
    """Standard output of a program, or nothing where it is absent or fails."""
    if shutil.which(command[0]) is None:
        return ""
    done = subprocess.run(command, capture_output=True, text=True, timeout=20, check=False)
    return done.stdout.strip() if done.returncode == 0 else ""
