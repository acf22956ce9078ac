"""Members of wheels and npm tarballs, read as bounded streams; nothing is ever extracted by an archive's own paths."""

from __future__ import annotations

import io
import tarfile
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path, PurePosixPath
from typing import IO, Protocol

from izwi_lab.errors import ArtifactError, ChecksumError

_BLOCK_BYTES = 1 << 20
_MAX_NPZ_BYTES = 256 * 2**20  # it is read as a whole
_DAMAGE = (zipfile.BadZipFile, tarfile.TarError, EOFError, zlib.error, OSError, RuntimeError, NotImplementedError)


class Archive(Protocol):
    """An opened archive: regular files only, in archive order."""

    path: Path

    @property
    def sizes(self) -> dict[str, int]:
        """Announced size of each member."""

    def open(self, name: str) -> IO[bytes]:
        """A stream of the member's bytes."""


class _Wheel:
    def __init__(self, path: Path, file: zipfile.ZipFile) -> None:
        self.path, self._file = path, file
        self.sizes = {i.filename: i.file_size for i in file.infolist() if not i.is_dir()}

    def open(self, name: str) -> IO[bytes]:
        return self._file.open(name)


class _Tarball:
    def __init__(self, path: Path, file: tarfile.TarFile) -> None:
        self.path, self._file = path, file
        self._members = {m.name: m for m in file.getmembers() if m.isreg()}  # no links, no devices
        self.sizes = {name: m.size for name, m in self._members.items()}

    def open(self, name: str) -> IO[bytes]:
        stream = self._file.extractfile(self._members[name])
        if stream is None:  # cannot be: only regular files are listed
            raise tarfile.TarError(f"{name} is not a regular file")
        return stream


@contextmanager
def open_archive(path: Path) -> Iterator[Archive]:
    """Open a .whl, .zip, .tgz or .tar.gz.

    Raises:
        ChecksumError: it is damaged.
    """
    try:
        handle = zipfile.ZipFile(path) if path.suffix in (".whl", ".zip") else tarfile.open(path, "r:*")  # noqa: SIM115
    except _DAMAGE as error:
        raise _damaged(path, error) from error
    with closing(handle):
        try:
            archive = _Wheel(path, handle) if isinstance(handle, zipfile.ZipFile) else _Tarball(path, handle)
        except _DAMAGE as error:
            raise _damaged(path, error) from error
        yield archive


def blocks(archive: Archive, name: str, limit_bytes: int) -> Iterator[bytes]:
    """The member's bytes, block by block.

    Raises:
        ChecksumError: the archive is damaged, or the member gives more than limit_bytes.
    """
    count = 0
    try:
        with archive.open(name) as stream:
            while block := stream.read(_BLOCK_BYTES):
                count += len(block)
                if count > limit_bytes:
                    raise ChecksumError(
                        f"{name} in {archive.path.name} is larger than the {limit_bytes} bytes it may have.",
                        hint="The package is not the one that was pinned; do not use it.",
                    )
                yield block
    except _DAMAGE as error:
        raise _damaged(archive.path, error) from error


def array_bytes(archive: Archive, name: str, array: str, limit_bytes: int) -> bytes:
    """The raw little-endian bytes of one array in a member that is a numpy .npz; objects are never unpickled."""
    import numpy as np

    packed = b"".join(blocks(archive, name, _MAX_NPZ_BYTES))
    try:
        with zipfile.ZipFile(io.BytesIO(packed)) as inner:
            if inner.getinfo(f"{array}.npy").file_size > limit_bytes + 4096:  # 4096: room for the .npy header
                raise ChecksumError(f"Array {array} in {name} is larger than {limit_bytes} bytes.")
            values = np.lib.format.read_array(io.BytesIO(inner.read(f"{array}.npy")), allow_pickle=False)
    except (*_DAMAGE, KeyError, ValueError) as error:
        raise ChecksumError(f"{name} in {archive.path.name} holds no readable array {array!r}: {error}.") from error
    return np.ascontiguousarray(values, dtype=values.dtype.newbyteorder("<")).tobytes()


def safe_path(folder: Path, name: str) -> Path:
    """`name` under `folder`.

    Raises:
        ArtifactError: an absolute name, or one that leaves the folder.
    """
    parts = PurePosixPath(name).parts
    hostile = not parts or name.startswith("/") or ".." in parts or set(name) & set("\\:\0")
    if hostile:
        raise ArtifactError(f"The file name {name!r} leaves the model's folder.", hint="Do not use this package.")
    return folder.joinpath(*parts)


def _damaged(path: Path, error: BaseException) -> ChecksumError:
    return ChecksumError(f"{path.name} is damaged: {error}.", hint="Fetch again; the damaged copy is dropped.")
