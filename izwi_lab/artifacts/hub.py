"""The hub source: a pinned commit of a model repo, in huggingface_hub's own cache, linked from the model's folder.

HF_TOKEN, HF_ENDPOINT, HF_HUB_CACHE and HF_HUB_OFFLINE mean what they mean to huggingface_hub. Its downloads start over
after a restart (2.x writes to a temporary file of its own), so large files are fetched here with Range into the same
cache, hashed, and only then given their name in it.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from izwi_lab.artifacts.archives import safe_path
from izwi_lab.artifacts.clients import sha256_of
from izwi_lab.artifacts.disk import check_room
from izwi_lab.artifacts.hub_transfer import HubFiles, ends_as_hub_error
from izwi_lab.artifacts.local_model import COMMIT
from izwi_lab.artifacts.manifest import Manifest, StoredFile, read_manifest
from izwi_lab.artifacts.progress import Meter, State
from izwi_lab.catalog.variant import FileSpec, ModelVariant
from izwi_lab.errors import ArtifactError, ChecksumError, UnreachableError

# What a repo's files are chosen by when the catalog lists none: weights in formats we read, and what goes with them.
_WANTED = re.compile(r"[^/]+\.(safetensors|safetensors\.index\.json|json|jinja|txt|model|tiktoken|gguf|nemo)")


@dataclass(frozen=True, slots=True)
class RemoteFile:
    """A file of the repo at one commit. sha256 is known for large (LFS) files, and where the catalog pins it."""

    name: str
    bytes: int | None
    sha256: str | None
    lfs: bool


def install(variant: ModelVariant, folder: Path, meter: Meter) -> Manifest:
    """Fetch the files of `variant` at its pinned commit, link them from `folder`, and return the complete manifest.

    The commit of a moving revision is the one of the first download: it is recorded at once and kept.

    Raises:
        ArtifactError: gated, unknown or incomplete repo, or no disk space.
        ChecksumError: bytes other than the pinned ones.
        UnreachableError: no hub, and not everything is in its cache.
    """
    meter.state(State.DOWNLOADING)
    if not variant.hub:
        raise ArtifactError(f"{variant.id} is on no model hub.", hint="Use source='starter'.")
    hub = HubFiles(variant.repo, meter)
    revision = _revision(variant, folder)
    try:
        with ends_as_hub_error(variant, hub.endpoint):
            commit, files = _listed(hub, variant, revision)
    except UnreachableError:
        known = _all_cached(hub, variant, revision)
        if known is None:
            raise
        commit, files = known
    manifest = Manifest(variant.id, "hub", str(variant.layout), repo=variant.repo, commit=commit)
    manifest.write(folder)
    return _fetch(hub, variant, folder, meter, manifest, files)


def _revision(variant: ModelVariant, folder: Path) -> str:
    """The pinned commit; for a moving revision the commit that an earlier, unfinished download began with."""
    old = read_manifest(folder)
    if COMMIT.fullmatch(variant.revision) or old is None or old.repo != variant.repo:
        return variant.revision
    return old.commit or variant.revision


def _fetch(
    hub: HubFiles,
    variant: ModelVariant,
    folder: Path,
    meter: Meter,
    manifest: Manifest,
    files: Iterable[RemoteFile],
) -> Manifest:
    files = list(files)
    meter.plan(sum(f.bytes or 0 for f in files), len(files))
    paths = {f.name: hub.cached(f.name, manifest.commit) for f in files}
    missing = sum((f.bytes or 0) - hub.partial_bytes(f.sha256) for f in files if paths[f.name] is None)
    check_room(variant.id, {hub.cache: missing})
    for file in files:
        path = paths[file.name]
        if path is not None:
            meter.kept(file.name, path.stat().st_size)
        else:
            with ends_as_hub_error(variant, hub.endpoint):
                path = hub.fetch(file.name, manifest.commit, size=file.bytes, sha256=file.sha256 if file.lfs else None)
            meter.finished(file.name, path.stat().st_size)
        meter.now(file.name)
        manifest = manifest.with_file(file.name, _verified(hub, path, file))
        _link(path, safe_path(folder, file.name))
        manifest.write(folder)
    return manifest


def _listed(hub: HubFiles, variant: ModelVariant, revision: str) -> tuple[str, list[RemoteFile]]:
    """The commit that `revision` names now, and the wanted files of it as the hub lists them."""
    commit, listing = hub.listing(revision)
    wanted = _wanted(variant, listing)
    absent = [f.name for f in wanted if f.name not in listing and not f.optional]
    if absent:
        raise ArtifactError(
            f"{variant.repo} at {commit[:12]} lacks {', '.join(absent)}.", hint="The repo has changed: pin a commit."
        )
    return commit, [_remote(f, listing[f.name]) for f in wanted if f.name in listing]


def _wanted(variant: ModelVariant, listing: Mapping[str, Any]) -> list[FileSpec]:
    if variant.files:
        for spec in variant.files:
            safe_path(Path(), spec.name)
        return list(variant.files)
    found = [FileSpec(n) for n in sorted(listing) if _WANTED.fullmatch(n)]
    if not any(f.name.endswith((".safetensors", ".gguf", ".nemo")) for f in found):
        raise ArtifactError(f"{variant.repo} holds no weights in a format that is read here.", hint="See the README.")
    return found


def _remote(spec: FileSpec, sibling: Any) -> RemoteFile:
    size = sibling.size if sibling.size is not None else spec.bytes
    lfs = sibling.lfs.sha256 if sibling.lfs is not None else None
    if spec.sha256 is not None and lfs is not None and spec.sha256 != lfs:
        raise ChecksumError(
            f"{spec.name} on the hub has sha256 {lfs}, the catalog pins {spec.sha256}.",
            hint="The repo has changed since it was checked; do not use it unseen.",
        )
    return RemoteFile(spec.name, size, lfs or spec.sha256, lfs is not None)


def _all_cached(hub: HubFiles, variant: ModelVariant, revision: str) -> tuple[str, list[RemoteFile]] | None:
    """Without a hub: the commit and files, if the hub's cache holds every required one; else None."""
    if not variant.files:
        return None
    found = {f.name: hub.cached(f.name, revision) for f in variant.files}
    if any(found[f.name] is None for f in variant.files if not f.optional):
        return None
    specs = [f for f in variant.files if found[f.name] is not None]
    commit = hub.commit_of(found[specs[0].name]) if specs else None
    if commit is None:
        return None
    return commit, [RemoteFile(f.name, f.bytes, f.sha256, False) for f in specs]


def _verified(hub: HubFiles, path: Path, file: RemoteFile) -> StoredFile:
    """Hash a cached file; one that is not what it should be is dropped from the cache: the next try is clean."""
    digest, size = sha256_of(path), path.stat().st_size
    if (file.sha256 is not None and digest != file.sha256) or (file.bytes is not None and size != file.bytes):
        hub.drop(path)
        raise ChecksumError(
            f"{file.name} has {size} bytes and sha256 {digest}; expected {file.bytes} bytes and {file.sha256}.",
            hint="The damaged copy was dropped: fetch again.",
        )
    return StoredFile(size, digest)


def _link(path: Path, target: Path) -> None:
    """Make `target` the cached file without copying it: a symbolic link, or a hard link where those are not allowed."""
    blob = path.resolve()
    target.parent.mkdir(parents=True, exist_ok=True)
    aside = target.with_name(target.name + ".link")
    aside.unlink(missing_ok=True)
    makers: tuple[Callable[[Path, Path], None], ...] = (os.symlink, os.link)
    for make in makers:
        try:
            make(blob, aside)
            aside.replace(target)
            return
        except OSError as error:
            failure = error
    raise ArtifactError(
        f"Cannot link {target} to {blob}: {failure.strerror}.",
        hint="Put HF_HUB_CACHE and IZWI_MODELS_DIR on one disk, or allow symbolic links.",
    )
