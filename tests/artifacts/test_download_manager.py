"""Jobs: shared, cancelled, resumed after a kill, kept apart between processes, deleted."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from fake_registry import Shelf, two_npm, until, variant

from izwi_lab import artifacts
from izwi_lab.artifacts import DownloadManager, Progress, State
from izwi_lab.artifacts.progress import Meter
from izwi_lab.cancel import CancelToken
from izwi_lab.catalog.variant import ModelVariant
from izwi_lab.errors import ArtifactError, Cancelled

# A second process that fetches the model described by the JSON it is given.
CHILD = """
import json, sys
from izwi_lab import artifacts
from izwi_lab.catalog.variant import *
d = json.loads(sys.argv[1])
packages = tuple(Package(*p) for p in d["packages"])
files = tuple(StarterFile(n, tuple(m), s, b) for n, m, s, b in d["files"])
row = ModelVariant("Tiny-Model", "Tiny", "someone/tiny", Family.LLAMA, (Task.CHAT,), Layout.HF, 1000,
                   starter=StarterPack(packages, files, 1000), starter_layout=Layout.GGUF)
print(artifacts.fetch(row).folder, flush=True)
"""


def child(row: ModelVariant, script: str = CHILD) -> subprocess.Popen[str]:
    assert row.starter is not None
    told = {
        "packages": [(p.client, p.name, p.version, p.sha256, p.bytes) for p in row.starter.packages],
        "files": [(f.name, f.members, f.sha256, f.bytes) for f in row.starter.files],
    }
    env = {**os.environ, "PYTHONPATH": str(Path(artifacts.__file__).parents[2])}
    command = [sys.executable, "-c", script, json.dumps(told)]
    return subprocess.Popen(command, env=env, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


def test_two_threads_that_want_one_model_share_one_job(shelf: Shelf, home: Path) -> None:
    row, a, _ = two_npm(shelf)
    open_gate = shelf.close(a)
    manager = DownloadManager()
    barrier, jobs = threading.Barrier(8), []

    def start() -> None:
        barrier.wait()
        jobs.append(manager.start(row))

    threads = [threading.Thread(target=start) for _ in range(8)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    assert len(jobs) == 8 and len({id(j) for j in jobs}) == 1
    assert jobs[0].wait(0.05) is None
    open_gate()
    assert jobs[0].wait(20) is not None
    assert sorted(shelf.calls()) == ["alpha@1.0", "beta@1.0"]
    assert manager.start(row).wait(20) == jobs[0].wait() and manager.jobs() == (manager.job(row),)


def test_progress_only_grows_and_ends_complete(shelf: Shelf, home: Path) -> None:
    row, a, b = two_npm(shelf)
    seen: list[Progress] = []
    artifacts.fetch(row, progress=seen.append)
    last = seen[-1]
    assert (last.state, last.files_done, last.files_total, last.error) == (State.DONE, 2, 2, "")
    assert last.bytes_done == last.bytes_total == (a.bytes or 0) + (b.bytes or 0)
    assert [p.bytes_done for p in seen] == sorted(p.bytes_done for p in seen)
    assert last.fraction == 1.0 and last.eta_s is None


def test_cancel_keeps_what_is_finished(shelf: Shelf, home: Path, tmp_path: Path) -> None:
    row, _, b = two_npm(shelf)
    open_gate = shelf.close(b)
    job = artifacts.manager().start(row)
    until(lambda: (tmp_path / "packages" / "alpha-1.0.tgz").exists() and "beta@1.0" in shelf.calls())
    until(lambda: job.progress().bytes_done > 3000)
    running = job.progress()
    assert running.state is State.DOWNLOADING and running.files_done == 1 and running.bytes_total > running.bytes_done
    job.cancel()
    with pytest.raises(Cancelled):
        job.wait(20)
    assert job.progress().state is State.CANCELLED and job.done
    open_gate()
    assert artifacts.fetch(row).source == "starter"
    assert sorted(shelf.calls()) == ["alpha@1.0", "beta@1.0", "beta@1.0"]


def test_the_last_who_waits_cancels_and_not_before(shelf: Shelf, home: Path) -> None:
    row, a, _ = two_npm(shelf)
    open_gate = shelf.close(a)
    first, second = CancelToken(), CancelToken()
    ends: dict[str, object] = {}

    def wait(name: str, token: CancelToken) -> None:
        try:
            ends[name] = artifacts.fetch(row, cancel=token)
        except Cancelled as error:
            ends[name] = error

    threads = [threading.Thread(target=wait, args=pair) for pair in (("one", first), ("two", second))]
    for t in threads:
        t.start()
    until(lambda: (job := artifacts.manager().job(row)) is not None and job._waiters == 2)
    first.cancel()
    until(lambda: "one" in ends)
    job = artifacts.manager().job(row)
    assert job is not None and isinstance(ends["one"], Cancelled) and not job.done
    open_gate()
    for t in threads:
        t.join(20)
    assert ends["two"] == artifacts.locate(row) is not None
    artifacts.delete(row)
    shelf.close(a)
    (home.parent / "packages" / "alpha-1.0.tgz").unlink()
    alone = CancelToken(timeout_s=0.3)
    with pytest.raises(Cancelled):
        artifacts.fetch(row, cancel=alone)
    job = artifacts.manager().job(row)
    assert job is not None
    until(lambda: job.done)
    assert job.progress().state is State.CANCELLED


def test_a_killed_process_is_resumed_without_fetching_twice(shelf: Shelf, home: Path, tmp_path: Path) -> None:
    row, _, b = two_npm(shelf)
    open_gate = shelf.close(b)
    with child(row) as process:
        until(lambda: (tmp_path / "packages" / "alpha-1.0.tgz").exists())
        until(lambda: list((tmp_path / "packages" / ".work").rglob("partial")))
        process.send_signal(signal.SIGKILL)
    assert artifacts.locate(row) is None
    open_gate()
    model = artifacts.fetch(row)
    assert (model.folder / "b.bin").stat().st_size == 5000
    assert sorted(shelf.calls()) == ["alpha@1.0", "beta@1.0", "beta@1.0"]
    assert not list((tmp_path / "packages" / ".work").iterdir())  # what the dead left is gone


def test_a_kill_between_files_counts_nothing_half_done(shelf: Shelf, home: Path) -> None:
    row, _, _ = two_npm(shelf)
    folder = artifacts.fetch(row).folder
    manifest = folder / "izwi-manifest.json"
    manifest.write_text(manifest.read_text().replace('"complete": true', '"complete": false'))
    (folder / "b.bin").rename(folder / "b.bin.part")  # as a process killed while writing leaves it
    (folder / "b.bin.part").write_bytes(b"half")
    assert artifacts.locate(row) is None
    assert {p.name for p in artifacts.fetch(row).folder.iterdir()} == {"a.bin", "b.bin", "izwi-manifest.json"}


def test_a_program_that_ends_in_mid_download_takes_its_clients_with_it(
    shelf: Shelf, home: Path, tmp_path: Path
) -> None:
    row, a, _ = two_npm(shelf)
    shelf.close(a)
    script = CHILD.replace("print(artifacts.fetch(row).folder, flush=True)", "artifacts.manager().start(row)\ninput()")
    with child(row, script) as process:
        until(lambda: list((tmp_path / "packages" / ".work").rglob("partial")))
        process.communicate("\n", timeout=15)
    assert process.returncode == 0
    assert not list((tmp_path / "packages" / ".work").iterdir())


def test_a_finished_model_needs_no_writing(shelf: Shelf, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    row, _, _ = two_npm(shelf)
    model = artifacts.fetch(row)
    monkeypatch.setattr("izwi_lab.artifacts.download.locked", None)  # nobody may ask for it
    assert artifacts.fetch(row) == model


def test_two_processes_fetch_once(shelf: Shelf, home: Path) -> None:
    row, a, _ = two_npm(shelf)
    open_gate = shelf.close(a)
    with child(row) as other:
        until(lambda: "alpha@1.0" in shelf.calls())
        job = artifacts.manager().start(row)
        until(lambda: job.progress().state is State.WAITING)
        with pytest.raises(ArtifactError, match="is being fetched"):
            artifacts.delete(row)
        open_gate()
        assert job.wait(20) == artifacts.locate(row) is not None
        assert other.wait(20) == 0
    assert sorted(shelf.calls()) == ["alpha@1.0", "beta@1.0"]


def test_a_job_waiting_for_another_process_can_be_cancelled_and_delete_refuses(shelf: Shelf, home: Path) -> None:
    row, a, _ = two_npm(shelf)
    open_gate = shelf.close(a)
    with child(row) as other:
        until(lambda: "alpha@1.0" in shelf.calls())
        job = artifacts.manager().start(row)
        until(lambda: job.progress().state is State.WAITING)
        job.cancel()
        with pytest.raises(Cancelled):
            job.wait(20)
        (home / row.id).mkdir(parents=True, exist_ok=True)
        with pytest.raises(ArtifactError, match="in use by another process"):
            artifacts.delete(row)
        open_gate()
        assert other.wait(20) == 0


def test_delete_removes_only_the_models_folder(shelf: Shelf, home: Path, tmp_path: Path) -> None:
    row, _, _ = two_npm(shelf)
    folder = artifacts.fetch(row).folder
    treasure = tmp_path / "treasure"
    treasure.mkdir()
    (treasure / "gold").write_text("mine")
    (folder / "way-out").symlink_to(treasure)
    (folder / "gold").symlink_to(treasure / "gold")
    (home / "Other-Model").mkdir()
    assert artifacts.delete(row) is True
    assert artifacts.locate(row) is None and not (home / row.id).exists()
    assert (treasure / "gold").read_text() == "mine" and (home / "Other-Model").exists()
    assert {p.name for p in home.iterdir()} == {".locks", "Other-Model"}
    assert artifacts.delete(row) is False
    (home / row.id).symlink_to(treasure)
    assert artifacts.delete(row) is True
    assert (treasure / "gold").exists() and not (home / row.id).is_symlink()


def test_delete_refuses_while_a_job_runs_unless_told_to_cancel(shelf: Shelf, home: Path) -> None:
    row, a, _ = two_npm(shelf)
    shelf.close(a)
    job = artifacts.manager().start(row)
    until(lambda: "alpha@1.0" in shelf.calls())
    with pytest.raises(ArtifactError, match="is being fetched"):
        artifacts.delete(row)
    artifacts.delete(row, cancel=True)
    assert job.done and job.progress().state is State.CANCELLED and not (home / row.id).exists()


def test_another_source_waits_its_turn(shelf: Shelf, home: Path) -> None:
    row, a, _ = two_npm(shelf)
    open_gate = shelf.close(a)
    manager = artifacts.manager()
    job = manager.start(row, "starter")
    assert manager.start(row) is job
    with pytest.raises(ArtifactError, match="already being fetched from starter"):
        manager.start(row, "hub")
    open_gate()
    assert job.wait(20) is not None


def test_a_folder_that_cannot_be_written_is_an_error_with_a_hint(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("not a folder")
    monkeypatch.setenv("IZWI_MODELS_DIR", str(tmp_path / "file" / "models"))
    with pytest.raises(ArtifactError, match="Could not write"):
        artifacts.fetch(variant(None))


def test_rate_and_time_left_leave_out_what_was_here() -> None:
    now = [0.0]
    meter = Meter(CancelToken(), clock=lambda: now[0])
    meter.state(State.DOWNLOADING)
    meter.plan(10_000, 3)
    meter.kept("old", 4000)
    for second in range(5):
        now[0] = float(second)
        meter.at("new", 1000 + second * 500, resumed_bytes=1000)
    reading = meter.read()
    assert reading.bytes_done == 7000 and reading.files_done == 1 and reading.current_file == "new"
    assert reading.rate_bytes_s == pytest.approx(500) and reading.eta_s == pytest.approx(6)
    now[0] = 100.0  # stalled: no longer five hundred
    meter.at("new", 3000)
    assert meter.read().rate_bytes_s == 0.0 and meter.read().eta_s is None


def test_a_fetch_never_joins_a_job_that_others_have_left(
    shelf: Shelf, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A caller who cancels must not take the next one with him, however long his job takes to notice."""
    row, _, _ = two_npm(shelf)
    noticed, real, deaf = threading.Event(), Meter.check, threading.Event()

    def slow_to_notice(self: Meter) -> None:
        if self.cancel.cancelled and not deaf.is_set():
            noticed.set()
            deaf.wait(20)
        real(self)

    monkeypatch.setattr(Meter, "check", slow_to_notice)
    token, open_gate = CancelToken(), shelf.close(row.starter.packages[0])  # type: ignore[union-attr]
    with pytest.raises(Cancelled):
        artifacts.fetch(row, cancel=token, progress=lambda _: token.cancel())
    old = artifacts.manager().job(row)
    assert old is not None and noticed.wait(20) and not old.done and old.stopping and not old.join()
    threading.Timer(0.3, deaf.set).start()
    open_gate()
    assert artifacts.fetch(row).source == "starter"
    assert artifacts.manager().job(row) is not old


def test_who_only_joins_a_job_cannot_end_it(shelf: Shelf, home: Path) -> None:
    """A request that is given up must not take away a download that somebody started for its own sake."""
    row, a, _ = two_npm(shelf)
    open_gate = shelf.close(a)
    job, token = artifacts.manager().start(row), CancelToken()
    with pytest.raises(Cancelled):
        artifacts.fetch(row, cancel=token, progress=lambda _: token.cancel())
    assert not job.stopping and not job.done
    open_gate()
    assert job.wait(20) is not None
