"""Bytes from a hub into huggingface_hub's cache: resumed by Range, hashed before they get their name there."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from izwi_lab.artifacts.atomic import write_error
from izwi_lab.artifacts.clients import sha256_of
from izwi_lab.artifacts.locks import locked
from izwi_lab.artifacts.progress import Meter
from izwi_lab.catalog.variant import ModelVariant
from izwi_lab.errors import ArtifactError, ChecksumError, IzwiError, UnreachableError

_DISK_ERRORS = (errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR)
_PART = ".izwi-part"  # our partial blobs; the hub's own clean-up leaves other names alone


class HubFiles:
    """The files of one model repo, in the hub and in its cache."""

    def __init__(self, repo: str, meter: Meter) -> None:
        from huggingface_hub import HfApi, constants
        from huggingface_hub.file_download import repo_folder_name

        self.repo = repo
        self._meter = meter
        self._api = HfApi(endpoint=os.environ.get("HF_ENDPOINT") or None)
        self.endpoint = str(self._api.endpoint).rstrip("/")
        # read at call time: huggingface_hub itself reads its environment once, at import
        self.cache = Path(os.environ.get("HF_HUB_CACHE") or constants.HF_HUB_CACHE).expanduser()
        self._blobs = self.cache / repo_folder_name(repo_id=repo, repo_type="model") / "blobs"

    def listing(self, revision: str) -> tuple[str, dict[str, Any]]:
        """The commit `revision` points to and its files by name (size, lfs.sha256)."""
        info = self._api.model_info(self.repo, revision=revision, files_metadata=True)
        if info.sha is None:
            raise ArtifactError(f"The hub names no commit for {self.repo} at {revision}.", hint="Check HF_ENDPOINT.")
        return info.sha, {s.rfilename: s for s in info.siblings or ()}

    def cached(self, name: str, revision: str) -> Path | None:
        """The file in the hub's cache, or None."""
        from huggingface_hub import try_to_load_from_cache

        found = try_to_load_from_cache(self.repo, name, cache_dir=self.cache, revision=revision)
        return Path(found) if isinstance(found, str) else None

    def commit_of(self, path: Path | None) -> str | None:
        """The commit whose snapshot a cached path belongs to."""
        if path is None:
            return None
        snapshots = self._blobs.parent / "snapshots"
        return path.relative_to(snapshots).parts[0] if path.is_relative_to(snapshots) else None

    def partial_bytes(self, sha256: str | None) -> int:
        """How much of a large file an earlier attempt has left."""
        part = self._blobs / f"{sha256}{_PART}"
        return part.stat().st_size if sha256 and part.exists() else 0

    def fetch(self, name: str, commit: str, *, size: int | None, sha256: str | None) -> Path:
        """Download one file into the cache; returns its path there. sha256: given for LFS files, which are resumed."""
        from huggingface_hub import hf_hub_download

        if sha256 is not None and size is not None:
            self._fetch_blob(name, commit, size, sha256)
        # finds the blob when it is there, and writes the cache's own links either way
        path = hf_hub_download(
            self.repo,
            name,
            revision=commit,
            cache_dir=self.cache,
            endpoint=self.endpoint,
            tqdm_class=_bar(self._meter, name, 0),
        )
        return Path(path)

    def drop(self, path: Path) -> None:
        """Remove a damaged file from the cache: its blob and the link to it."""
        blob = path.resolve()
        path.unlink(missing_ok=True)
        if blob.is_relative_to(self.cache.resolve()):
            blob.unlink(missing_ok=True)

    def _fetch_blob(self, name: str, commit: str, size: int, sha256: str) -> None:
        blob = self._blobs / sha256
        part = blob.with_name(sha256 + _PART)
        with locked(self._blobs / f"{sha256}{_PART}.lock", waiting=self._meter.check):
            if blob.exists():
                return
            try:
                self._download(name, commit, part, size)
                if (found := sha256_of(part)) != sha256:
                    part.unlink()
                    raise ChecksumError(
                        f"{name} arrived with sha256 {found}, expected {sha256}.", hint="It was dropped: fetch again."
                    )
                part.replace(blob)
            except OSError as error:
                if error.errno is None:
                    raise
                raise write_error(error, part) from error
        (self._blobs / f"{sha256}{_PART}.lock").unlink(missing_ok=True)

    def _download(self, name: str, commit: str, part: Path, size: int) -> None:
        from huggingface_hub import hf_hub_url
        from huggingface_hub.file_download import http_get
        from huggingface_hub.utils import build_hf_headers  # type: ignore[attr-defined]

        have = part.stat().st_size if part.exists() else 0
        if have > size:
            part.unlink()
            have = 0
        with part.open("ab") as file:
            http_get(
                hf_hub_url(self.repo, name, revision=commit, endpoint=self.endpoint),
                file,
                resume_size=have,
                headers=build_hf_headers(),
                expected_size=size,
                tqdm_class=_bar(self._meter, name, have),
            )
            file.flush()
            os.fsync(file.fileno())


def _bar(meter: Meter, name: str, have: int) -> Any:
    """A tqdm class that prints nothing and reports to the meter; raising from `update` is how a download is ended."""
    from huggingface_hub.utils import tqdm  # type: ignore[attr-defined]

    class Bar(tqdm):
        def __init__(self, *args: Any, **options: Any) -> None:
            self._come = have
            super().__init__(*args, **{**options, "disable": True})  # type: ignore[no-untyped-call]

        def update(self, n: float | None = 1) -> bool | None:
            self._come += int(n or 0)
            meter.at(name, self._come, resumed_bytes=have)
            return None

    return Bar


@contextmanager
def ends_as_hub_error(variant: ModelVariant, endpoint: str) -> Iterator[None]:
    """Turn huggingface_hub's errors into ours, each with what to do about it."""
    from huggingface_hub import errors

    page = f"{endpoint}/{variant.repo}"
    try:
        yield
    except IzwiError:
        raise
    except errors.GatedRepoError as error:
        raise ArtifactError(
            f"{variant.repo} is gated: its licence must be accepted before it can be fetched.",
            hint=f"Accept it at {page}, then set HF_TOKEN to an access token of that account.",
        ) from error
    except errors.RepositoryNotFoundError as error:
        raise ArtifactError(
            f"The hub has no repo {variant.repo}, or it is private.",
            hint=f"Check {page}; for a private or gated repo set HF_TOKEN.",
        ) from error
    except errors.RevisionNotFoundError as error:
        raise ArtifactError(f"{variant.repo} has no revision {variant.revision}.", hint=f"See {page}.") from error
    except errors.HfHubHTTPError as error:
        raise _http_error(variant, page, error) from error
    except _network_errors() as error:
        if isinstance(error, OSError) and error.errno in _DISK_ERRORS:
            raise write_error(error, Path(str(error.filename or "a file of the hub's cache"))) from error
        raise UnreachableError(
            f"The hub at {endpoint} cannot be reached: {error}.", hint="Check the network, HF_ENDPOINT and proxies."
        ) from error


def _http_error(variant: ModelVariant, page: str, error: Any) -> ArtifactError:
    status = getattr(error.response, "status_code", None)
    if status in (401, 403):
        return ArtifactError(
            f"The hub refused {variant.repo} ({status}).",
            hint=f"Accept its licence at {page} and set HF_TOKEN to an access token of that account.",
        )
    if status is not None and status >= 500:
        return UnreachableError(f"The hub answered {status} for {variant.repo}.", hint="Try again later.")
    return ArtifactError(f"The hub answered {status} for {variant.repo}: {error}.", hint=f"See {page}.")


def _network_errors() -> tuple[type[Exception], ...]:
    """OSError, and the base errors of whichever HTTP library huggingface_hub was built on."""
    from huggingface_hub import errors

    base = next(c for c in errors.HfHubHTTPError.__mro__ if c.__name__ == "HTTPError")
    return (OSError, *(c for c in base.__mro__ if issubclass(c, Exception) and c is not Exception))
