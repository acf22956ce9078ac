"""Native CPU kernels: small C++ files compiled once per machine, in the background, and never required.

`library("decoder")` gives the compiled `decoder.cpp` as a ctypes library, or None while it is being built, when no
compiler is present, or with IZWI_NATIVE=0; callers then use their plain torch path, which is always correct.
The build is cached under the user's cache folder, keyed by source, flags, CPU and the OpenMP runtime it shares.
"""

from __future__ import annotations

import ctypes
import hashlib
import logging
import os
import platform
import shutil
import subprocess
import tempfile
import threading
from pathlib import Path

_log = logging.getLogger(__name__)
_FLAGS = ("-O3", "-march=native", "-std=c++17", "-fPIC", "-shared", "-fopenmp", "-fno-math-errno", "-fno-trapping-math")
_NO_COMPILER = "no C++ compiler found (g++ or clang++)"
WAIT_S = 180.0  # a build takes some 10 s; a load waits for it, so that a model never changes its path while it lives
_lock = threading.Lock()
_jobs: dict[str, _Build] = {}


class _Build:
    """One library on its way: a thread, then a CDLL or the reason there is none."""

    def __init__(self, name: str) -> None:
        self.library: ctypes.CDLL | None = None
        self.reason = "building"
        self.late = False  # it took longer than somebody would wait
        self.thread = threading.Thread(target=self._run, args=(name,), name=f"native-{name}", daemon=True)
        self.thread.start()

    def _run(self, name: str) -> None:
        try:
            self.library = ctypes.CDLL(str(_compile(name)))
            self.reason = "ready"
            _record(name).unlink(missing_ok=True)
        except (OSError, subprocess.SubprocessError, RuntimeError) as error:
            self.reason = _ignored_cxx() + str(error)
            _remember(name, self.reason)
            _log.info("native library %s is not used: %s", name, error)


def library(name: str, *, wait: bool | float = False) -> ctypes.CDLL | None:
    """The compiled `<name>.cpp` of this folder, or None when it is not (yet) there. `wait` blocks until built, a number
    for so many seconds at most, and only once for a build that takes longer.
    """
    if os.environ.get("IZWI_NATIVE", "1") == "0":
        return None
    with _lock:
        job = _jobs.get(name) or _jobs.setdefault(name, _Build(name))
    if wait is True or (job.thread.is_alive() and _cached(name).exists()):
        job.thread.join()
    elif wait and not job.late:
        job.thread.join(wait)
        job.late = job.thread.is_alive()
    return job.library


def status() -> dict[str, str]:
    """Each library asked for so far: "ready", "building", or why it is not used."""
    return {name: job.reason for name, job in _jobs.items()}


def known() -> dict[str, str]:
    """Every kernel this package ships: "compiled" for this machine, or why it is not. Starts nothing."""
    if os.environ.get("IZWI_NATIVE", "1") == "0":
        return {path.stem: "off (IZWI_NATIVE=0)" for path in sorted(Path(__file__).parent.glob("*.cpp"))}
    names, cxx = [path.stem for path in sorted(Path(__file__).parent.glob("*.cpp"))], _ignored_cxx()
    waiting = "not compiled yet" if _compiler() else f"{_NO_COMPILER}: the slower path serves"
    failed = {name: job.reason for name, job in _jobs.items() if job.library is None and not job.thread.is_alive()}
    return {
        name: failed.get(name) or _failed_before(name) or ("compiled" if _cached(name).exists() else cxx + waiting)
        for name in names
    }


def _compile(name: str) -> Path:
    target = _cached(name)
    if target.exists():
        return target
    compiler = _compiler()
    if compiler is None:
        raise RuntimeError(_NO_COMPILER)
    if ignored := _ignored_cxx():
        _log.warning("%s%s compiles %s", ignored, compiler, name)
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent) as folder:
        out = Path(folder) / target.name
        openmp = _torch_openmp()
        command = [compiler, *_FLAGS, str(_source(name)), "-o", str(out), *([str(openmp)] if openmp else [])]
        done = subprocess.run(command, capture_output=True, text=True, errors="replace", timeout=600, check=False)
        if done.returncode:
            raise RuntimeError(f"{compiler} failed: {done.stderr[-600:]}")
        out.replace(target)
    return target


def _record(name: str) -> Path:
    """Where a failed build leaves its reason for other processes; the next that wants the library tries again."""
    return _cached(name).with_suffix(".failed")


def _remember(name: str, reason: str) -> None:
    if _compiler() is None:
        return  # known() sees that by itself, and sees when one is installed
    try:
        _record(name).parent.mkdir(parents=True, exist_ok=True)
        _record(name).write_text(reason, encoding="utf-8")
    except OSError as error:
        _log.info("cannot note the failed build of %s: %s", name, error)


def _failed_before(name: str) -> str | None:
    try:
        return f"the last build failed, the slower path serves: {_record(name).read_text(encoding='utf-8')}"
    except (OSError, ValueError):
        return None


def _compiler() -> str | None:
    """The path of CXX where that is a program, else g++ or clang++."""
    return next((found for c in (os.environ.get("CXX"), "g++", "clang++") if c and (found := shutil.which(c))), None)


def _ignored_cxx() -> str:
    cxx = os.environ.get("CXX")
    return f"CXX names no compiler: {cxx!r}; " if cxx and not shutil.which(cxx) else ""


def _source(name: str) -> Path:
    return Path(__file__).with_name(f"{name}.cpp")


def _cached(name: str) -> Path:
    headers = b"".join(p.read_bytes() for p in sorted(Path(__file__).parent.glob("*.h")))
    key = hashlib.sha256(
        b"|".join(
            [
                _source(name).read_bytes(),
                headers,
                " ".join(_FLAGS).encode(),
                _cpu().encode(),
                str(_torch_openmp()).encode(),
            ]
        )
    ).hexdigest()[:16]
    base = Path(
        os.environ.get("IZWI_CACHE_DIR") or Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "izwi"
    )
    return base / "native" / f"{name}-{key}.so"


def _cpu() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        flags = next(line for line in lines if line.startswith(("flags", "Features")))
    except (OSError, StopIteration):
        flags = platform.processor()
    return f"{platform.system()}-{platform.machine()}-{flags}"


def _torch_openmp() -> Path | None:
    """Torch's own OpenMP runtime: sharing it keeps one thread pool; two pools would fight for the cores."""
    import importlib.util

    spec = importlib.util.find_spec("torch")
    if spec is None or not spec.submodule_search_locations:
        return None
    roots = [Path(p) for p in spec.submodule_search_locations]
    found = [
        f
        for root in roots
        for folder in (root / "lib", root.parent / "torch.libs")
        if folder.is_dir()
        for f in folder.glob("libgomp*.so*")
    ]
    return found[0] if found else None
