"""The hub source against a hub on this machine: pinned commits, Range, gates, the shared cache, faults."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from fake_hub import COMMIT, MOVED, Hub, serve
from fake_registry import manifest_of, sha, until, variant

from izwi_lab import artifacts
from izwi_lab.artifacts import State
from izwi_lab.catalog.variant import FileSpec, Layout, ModelVariant
from izwi_lab.errors import ArtifactError, Cancelled, ChecksumError, UnreachableError

BLOCK = 100_000
WEIGHTS = os.urandom(3 * BLOCK)
FILES = {
    "config.json": b'{"model_type": "tiny"}',
    "model.safetensors": WEIGHTS,
    "sub/tokenizer.json": b"{}",
    "README.md": b"hello",
}
WANTED = (FileSpec("config.json"), FileSpec("model.safetensors"), FileSpec("sub/tokenizer.json"))

CHILD = """
import sys
from huggingface_hub import constants
from izwi_lab import artifacts
from izwi_lab.catalog.variant import *
constants.DOWNLOAD_CHUNK_SIZE = 100_000
names = sys.argv[2].split(",")
row = ModelVariant("Tiny-Model", "Tiny", "someone/tiny-model", Family.LLAMA, (Task.CHAT,), Layout.HF, 1000,
                   revision=sys.argv[1], files=tuple(FileSpec(n) for n in names))
print(artifacts.fetch(row).folder, flush=True)
"""


@pytest.fixture
def hub(home: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    held = Hub({COMMIT: dict(FILES)})
    server = serve(held)
    monkeypatch.setenv("HF_ENDPOINT", held.url)
    monkeypatch.setattr("huggingface_hub.constants.DOWNLOAD_CHUNK_SIZE", BLOCK)  # 10 MB, too much for a quick test
    yield held
    artifacts.manager().close()
    server.shutdown()
    server.server_close()


def row(**changes: object) -> ModelVariant:
    return variant(None, **{"files": WANTED, **changes})


def blobs(home: Path) -> Path:
    return home.parent / "hf" / "hub" / "models--someone--tiny-model" / "blobs"


def test_files_are_linked_from_the_hubs_own_cache(hub: Hub, home: Path) -> None:
    model = artifacts.fetch(row())
    assert (model.layout, model.source) == (Layout.HF, "hub")
    assert {str(p.relative_to(model.folder)) for p in model.folder.rglob("*") if p.is_file()} == {
        "config.json",
        "model.safetensors",
        "sub/tokenizer.json",
        "izwi-manifest.json",
    }
    weights = model.folder / "model.safetensors"
    assert weights.read_bytes() == WEIGHTS and weights.is_symlink()
    assert weights.resolve() == (blobs(home) / sha(WEIGHTS)).resolve()
    recorded = manifest_of(model.folder)
    assert recorded["commit"] == COMMIT and recorded["repo"] == "someone/tiny-model"
    assert artifacts.locate(row()) == model
    assert artifacts.delete(row())  # links only: the cache belongs to every program
    assert (blobs(home) / sha(WEIGHTS)).exists()
    count = len(hub.gets)
    assert artifacts.fetch(row()) == model and len(hub.gets) == count  # all from the cache


def test_the_cache_of_other_programs_is_used_and_left_usable(hub: Hub, home: Path) -> None:
    from huggingface_hub import hf_hub_download

    cache = Path(os.environ["HF_HUB_CACHE"])
    hf_hub_download("someone/tiny-model", "model.safetensors", endpoint=hub.url, cache_dir=cache)
    artifacts.fetch(row())
    assert len(hub.downloads("model.safetensors")) == 1
    found = hf_hub_download(
        "someone/tiny-model", "config.json", cache_dir=cache, local_files_only=True, revision=COMMIT
    )
    assert Path(found).read_bytes() == FILES["config.json"]
    assert not [p.name for p in blobs(home).iterdir() if "part" in p.name]


def test_without_a_network_a_full_cache_is_enough(hub: Hub, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pinned = row(revision=COMMIT)
    model = artifacts.fetch(pinned)
    artifacts.delete(pinned)
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    assert artifacts.fetch(pinned) == model
    assert manifest_of(model.folder)["commit"] == COMMIT
    artifacts.delete(pinned)
    with pytest.raises(UnreachableError, match=r"http://127\.0\.0\.1:9 cannot be reached"):
        artifacts.fetch(row(revision=MOVED))


def test_a_moving_branch_cannot_mix_two_commits(hub: Hub, home: Path) -> None:
    hub.corrupt = True
    with pytest.raises(ChecksumError):
        artifacts.fetch(row())
    assert manifest_of(home / "Tiny-Model" / "hub")["commit"] == COMMIT
    hub.corrupt = False
    hub.commits[MOVED] = {**FILES, "config.json": b'{"model_type": "changed"}', "model.safetensors": WEIGHTS[::-1]}
    hub.head = MOVED
    model = artifacts.fetch(row())
    assert (model.folder / "config.json").read_bytes() == FILES["config.json"]
    assert (model.folder / "model.safetensors").read_bytes() == WEIGHTS
    assert manifest_of(model.folder)["commit"] == COMMIT
    assert (artifacts.fetch(row(id="Other", revision=MOVED)).folder / "config.json").read_bytes() != FILES[
        "config.json"
    ]


def test_a_newly_pinned_commit_is_fetched(hub: Hub, home: Path) -> None:
    artifacts.fetch(row(revision=COMMIT))
    hub.commits[MOVED] = {**FILES, "config.json": b"{}"}
    extra = (*WANTED, FileSpec("README.md"))
    assert (artifacts.fetch(row(revision=COMMIT, files=extra)).folder / "README.md").exists()
    assert artifacts.locate(row(revision=MOVED)) is None and artifacts.locate(row(repo="someone/else")) is None
    assert artifacts.locate(row(files=(*WANTED, FileSpec("vocab.json")))) is None
    model = artifacts.fetch(row(revision=MOVED))
    assert (model.folder / "config.json").read_bytes() == b"{}" and artifacts.locate(row(revision=COMMIT)) is None
    assert not (model.folder / "README.md").exists()  # what the new list does not have is gone
    assert len(hub.downloads("model.safetensors")) == 1  # the same bytes at both commits


def test_a_killed_download_goes_on_by_range(hub: Hub, home: Path) -> None:
    hub.hold = threading.Event()
    env = {**os.environ, "PYTHONPATH": str(Path(artifacts.__file__).parents[2])}
    names = ",".join(f.name for f in WANTED)
    with subprocess.Popen([sys.executable, "-c", CHILD, COMMIT, names], env=env) as process:
        until(lambda: [p for p in blobs(home).glob("*.izwi-part") if p.stat().st_size >= BLOCK])
        process.send_signal(signal.SIGKILL)
    hub.hold.set()
    hub.hold = None
    pinned = row(revision=COMMIT)
    assert artifacts.locate(pinned) is None
    have = next(blobs(home).glob("*.izwi-part")).stat().st_size
    model = artifacts.fetch(pinned)
    assert (model.folder / "model.safetensors").read_bytes() == WEIGHTS
    assert hub.downloads("model.safetensors") == [None, f"bytes={have}-"]
    assert len(hub.downloads("config.json")) == 1  # finished before the kill: not asked for again


def test_a_server_without_range_starts_the_file_over(hub: Hub, home: Path) -> None:
    blobs(home).mkdir(parents=True)
    (blobs(home) / f"{sha(WEIGHTS)}.izwi-part").write_bytes(b"stale" * 1000)
    hub.ignore_range = True
    model = artifacts.fetch(row())
    assert (model.folder / "model.safetensors").read_bytes() == WEIGHTS


def test_a_wrong_partial_file_is_found_out_and_dropped(hub: Hub, home: Path) -> None:
    blobs(home).mkdir(parents=True)
    (blobs(home) / f"{sha(WEIGHTS)}.izwi-part").write_bytes(b"x" * 5000)
    with pytest.raises(ChecksumError, match="arrived with sha256"):
        artifacts.fetch(row())
    assert (artifacts.fetch(row()).folder / "model.safetensors").read_bytes() == WEIGHTS


def test_bytes_corrupted_on_the_way_never_become_visible(hub: Hub, home: Path) -> None:
    hub.corrupt = True
    with pytest.raises(ChecksumError, match="fetch again"):
        artifacts.fetch(row())
    assert artifacts.locate(row()) is None and not (blobs(home) / sha(WEIGHTS)).exists()
    assert not (home / "Tiny-Model" / "hub" / "model.safetensors").exists()
    hub.corrupt = False
    assert (artifacts.fetch(row()).folder / "model.safetensors").read_bytes() == WEIGHTS


def test_a_cached_blob_that_rotted_is_dropped(hub: Hub, home: Path) -> None:
    artifacts.fetch(row())
    artifacts.delete(row())
    (blobs(home) / sha(WEIGHTS)).write_bytes(b"rotten" + WEIGHTS[6:])
    with pytest.raises(ChecksumError, match="was dropped"):
        artifacts.fetch(row())
    assert (artifacts.fetch(row()).folder / "model.safetensors").read_bytes() == WEIGHTS


def test_a_catalog_hash_that_the_hub_does_not_have(hub: Hub, home: Path) -> None:
    files = (FileSpec("config.json"), FileSpec("model.safetensors", sha256=sha(b"other")))
    with pytest.raises(ChecksumError, match="the catalog pins"):
        artifacts.fetch(row(files=files))
    assert hub.gets == []
    with pytest.raises(ChecksumError, match="expected"):  # a small file: known only when it is here
        artifacts.fetch(row(files=(FileSpec("config.json", sha256=sha(b"other")),)))


@pytest.mark.parametrize("token", [None, "wrong"])
def test_a_gated_repo_names_the_token_and_the_page(
    hub: Hub, home: Path, monkeypatch: pytest.MonkeyPatch, token: str | None
) -> None:
    hub.gated = True
    if token is not None:
        monkeypatch.setenv("HF_TOKEN", token)
    with pytest.raises(ArtifactError, match="is gated") as caught:
        artifacts.fetch(row())
    assert "HF_TOKEN" in caught.value.hint and f"{hub.url}/someone/tiny-model" in caught.value.hint
    monkeypatch.setenv("HF_TOKEN", hub.token)
    assert artifacts.fetch(row()).source == "hub"
    assert hub.auth[-1] == "Bearer secret"


def test_what_is_not_there_is_named(hub: Hub, home: Path) -> None:
    with pytest.raises(ArtifactError, match="has no repo nobody/nothing"):
        artifacts.fetch(row(repo="nobody/nothing"))
    with pytest.raises(ArtifactError, match=f"no revision {MOVED}"):
        artifacts.fetch(row(revision=MOVED))
    with pytest.raises(ArtifactError, match=r"lacks vocab\.json"):
        artifacts.fetch(row(files=(*WANTED, FileSpec("vocab.json"))))
    assert artifacts.fetch(row(files=(*WANTED, FileSpec("vocab.json", optional=True)))).source == "hub"


def test_a_repo_without_a_file_list_gives_weights_and_what_goes_with_them(hub: Hub, home: Path) -> None:
    model = artifacts.fetch(row(files=()))
    assert {p.name for p in model.folder.iterdir()} == {"config.json", "model.safetensors", "izwi-manifest.json"}
    hub.commits[COMMIT] = {"config.json": b"{}"}
    with pytest.raises(ArtifactError, match="no weights in a format"):
        artifacts.fetch(row(id="Other", files=()))


def test_hostile_names_from_a_hub_stay_out(hub: Hub, home: Path) -> None:
    hub.commits[COMMIT] = {**FILES, "../../out.json": b"{}"}
    with pytest.raises(ArtifactError, match="leaves the model's folder"):
        artifacts.fetch(row(files=(FileSpec("../../out.json"),)))
    assert not list(home.parent.rglob("out.json"))


def test_cancel_keeps_the_part_and_progress_counts_it(hub: Hub, home: Path) -> None:
    hub.hold = threading.Event()
    job = artifacts.manager().start(row())
    until(lambda: job.progress().bytes_done >= BLOCK)
    reading = job.progress()
    assert reading.state is State.DOWNLOADING and reading.current_file == "model.safetensors"
    assert reading.bytes_total == sum(len(FILES[f.name]) for f in WANTED)
    job.cancel()
    hub.hold.set()
    with pytest.raises(Cancelled):
        job.wait(20)
    assert job.progress().state is State.CANCELLED
    hub.hold = None
    artifacts.fetch(row())
    assert hub.downloads("model.safetensors")[1] is not None  # resumed


def test_a_disk_that_fills_up(hub: Hub, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*args: object, **options: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("huggingface_hub.file_download.http_get", full)
        with pytest.raises(ArtifactError, match="disk is full"):
            artifacts.fetch(row())
    assert artifacts.fetch(row()).source == "hub"


def test_a_hub_in_trouble_is_unreachable(hub: Hub, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError

    class Response:
        status_code = 503
        headers: dict[str, str] = {}  # noqa: RUF012
        request = None

    def fail(*args: object, **options: object) -> None:
        raise HfHubHTTPError("bad gateway", response=Response())  # type: ignore[arg-type]

    monkeypatch.setattr(HfApi, "model_info", fail)
    with pytest.raises(UnreachableError, match="answered 503"):
        artifacts.fetch(row())


def test_where_links_are_forbidden_hard_links_serve(hub: Hub, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    artifacts.fetch(row())
    artifacts.delete(row())

    def forbidden(*args: object) -> None:
        raise OSError(errno.EPERM, "not allowed")

    monkeypatch.setattr(os, "symlink", forbidden)
    weights = artifacts.fetch(row()).folder / "model.safetensors"
    assert not weights.is_symlink() and weights.stat().st_nlink == 2
    artifacts.delete(row())
    monkeypatch.setattr(os, "link", forbidden)
    with pytest.raises(ArtifactError, match="on one disk"):
        artifacts.fetch(row())


def test_the_other_source_lies_beside(hub: Hub, home: Path) -> None:
    assert artifacts.fetch(row(), source="hub").folder == home / "Tiny-Model" / "hub"
    assert artifacts.locate(row(), source="starter") is None
    assert artifacts.locate(row(), source="hub") is not None
