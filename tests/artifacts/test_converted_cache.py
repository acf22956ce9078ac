"""The converted cache: made once, exact, rebuilt when anything is off, whole or absent."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import pytest

from izwi_lab.artifacts import converted as module
from izwi_lab.artifacts.converted import converted
from izwi_lab.artifacts.tensors import AffineTensor, Tensor
from izwi_lab.errors import ArtifactError, CheckpointError

RNG = np.random.default_rng(1)
TENSORS: dict[str, Tensor | AffineTensor] = {
    "odd": Tensor(RNG.integers(0, 255, 7, dtype=np.uint8), "uint8"),
    "matrix": AffineTensor(
        RNG.integers(0, 2**32, (6, 8), dtype=np.uint32),
        RNG.standard_normal((6, 2), dtype=np.float32),
        RNG.standard_normal((6, 2), dtype=np.float32),
        4,
        32,
    ),
    "bits": Tensor(RNG.integers(0, 2**16, (3, 5), dtype=np.uint16), "bfloat16"),
    "strided": Tensor(RNG.standard_normal((4, 6)).astype(np.float32).T, "float32"),
    "scalar": Tensor(np.array(3.5), "float64"),
    "empty": Tensor(np.zeros((0, 3), np.float32), "float32"),
}


class Builder:
    def __init__(self, tensors: Mapping[str, Tensor | AffineTensor] = TENSORS) -> None:
        self.tensors, self.calls = tensors, 0

    def __call__(self) -> Mapping[str, Tensor | AffineTensor]:
        self.calls += 1
        return self.tensors


@pytest.fixture
def source(tmp_path: Path) -> Path:
    path = tmp_path / "model" / "model.bin"
    path.parent.mkdir()
    path.write_bytes(b"weights")
    return path


def cache_file(source: Path) -> Path:
    (found,) = (source.parent / ".converted").glob("*.safetensors")
    return found


def test_it_is_made_once_and_comes_back_exactly(source: Path) -> None:
    build = Builder()
    for _ in range(3):
        checkpoint = converted([source], "tiny-v1", build)
        assert set(checkpoint.names) == set(TENSORS) and checkpoint.folder == source.parent
        for name, expected in TENSORS.items():
            found = checkpoint.read(name)
            assert type(found) is type(expected) and found.shape == expected.shape == checkpoint.shape(name)
            if isinstance(expected, AffineTensor):
                assert isinstance(found, AffineTensor)
                assert (found.bits, found.group_size) == (4, 32)
                for part in ("q", "scales", "biases"):
                    np.testing.assert_array_equal(getattr(found, part), getattr(expected, part))
            else:
                assert isinstance(found, Tensor) and found.dtype == expected.dtype
                np.testing.assert_array_equal(found.data, expected.data)
                assert found.data.flags.aligned
        checkpoint.close()
    assert build.calls == 1


def test_other_tools_can_read_it(source: Path) -> None:
    from safetensors import safe_open

    converted([source], "tiny-v1", Builder())
    with safe_open(cache_file(source), "numpy") as file:
        np.testing.assert_array_equal(file.get_tensor("odd"), TENSORS["odd"].float32())


def grow(source: Path) -> None:
    source.write_bytes(b"other weights")


def touch(source: Path) -> None:
    os.utime(source, ns=(1, 1))


def flip(source: Path) -> None:
    data = bytearray(cache_file(source).read_bytes())
    data[-3] ^= 4
    cache_file(source).write_bytes(data)


def cut(source: Path) -> None:
    cache_file(source).write_bytes(cache_file(source).read_bytes()[:-1])


def empty(source: Path) -> None:
    cache_file(source).write_bytes(b"")


def lose_record(source: Path) -> None:
    cache_file(source).with_suffix(".json").unlink()


def break_record(source: Path) -> None:
    cache_file(source).with_suffix(".json").write_text("[]")


@pytest.mark.parametrize("harm", [grow, touch, flip, cut, empty, lose_record, break_record])
def test_it_is_rebuilt(source: Path, harm: Callable[[Path], None]) -> None:
    build = Builder()
    converted([source], "tiny-v1", build)
    harm(source)
    found = converted([source], "tiny-v1", build).read("odd")
    assert build.calls == 2
    np.testing.assert_array_equal(found.float32(), TENSORS["odd"].float32())
    converted([source], "tiny-v1", build)
    assert build.calls == 2


def test_a_new_format_is_rebuilt_and_a_touched_but_equal_cache_is_not(
    source: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    build = Builder()
    converted([source], "tiny-v1", build)
    os.utime(cache_file(source), ns=(5, 5))
    converted([source], "tiny-v1", build)
    assert build.calls == 1
    monkeypatch.setattr(module, "FORMAT", 2)
    converted([source], "tiny-v1", build)
    assert build.calls == 2


def test_keys_and_sources_do_not_meet(source: Path) -> None:
    other = source.with_name("other.bin")
    other.write_bytes(b"other")
    a, b = Builder(), Builder({"b": Tensor(np.ones(2, np.float32), "float32")})
    assert set(converted([source], "tiny", a).names) == set(TENSORS)
    assert converted([source], "tiny-v2", b).names == ("b",)
    assert converted([source, other], "tiny-v3", b).names == ("b",)
    assert set(converted([source], "tiny", a).names) == set(TENSORS)
    assert (a.calls, b.calls) == (1, 2)


def test_a_replaced_source_leaves_no_litter(source: Path) -> None:
    for size in range(1, 4):
        source.write_bytes(b"x" * size)
        converted([source], "tiny-v1", Builder())
    assert {p.suffix for p in (source.parent / ".converted").iterdir()} <= {".safetensors", ".json", ".lock"}
    assert len(list((source.parent / ".converted").glob("*.safetensors"))) == 1
    assert len(list((source.parent / ".converted").glob("*.json"))) == 1


def test_threads_convert_once(source: Path) -> None:
    build, found, gate = Builder(), [], threading.Barrier(4)

    def work() -> None:
        gate.wait()
        found.append(converted([source], "tiny-v1", build).read("odd").shape)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    assert build.calls == 1 and found == [(7,)] * 4


def test_a_kill_while_writing_leaves_nothing_that_counts(source: Path) -> None:
    script = (
        "import os, sys, signal, pathlib, numpy as np\n"
        "from izwi_lab.artifacts import atomic\n"
        "from izwi_lab.artifacts.converted import converted\n"
        "from izwi_lab.artifacts.tensors import Tensor\n"
        "os.replace = lambda *a: os.kill(os.getpid(), signal.SIGKILL)\n"
        "converted([pathlib.Path(sys.argv[1])], 'tiny-v1', lambda: {'x': Tensor(np.ones(9), 'float64')})\n"
    )
    root = str(Path(module.__file__).parents[2])
    done = subprocess.run([sys.executable, "-c", script, str(source)], env={**os.environ, "PYTHONPATH": root})
    assert done.returncode == -9
    assert not list((source.parent / ".converted").glob("*.safetensors"))
    build = Builder()
    assert set(converted([source], "tiny-v1", build).names) == set(TENSORS) and build.calls == 1


def test_a_full_disk_says_so_and_leaves_nothing(source: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("izwi_lab.artifacts.atomic.os.fsync", full)
        with pytest.raises(ArtifactError, match="disk is full"):
            converted([source], "tiny-v1", Builder())
    assert not [p for p in (source.parent / ".converted").iterdir() if p.suffix != ".lock"]


def test_a_read_only_folder_uses_the_cache_folder(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("IZWI_PACKAGE_CACHE", str(tmp_path / "cache" / "packages"))
    monkeypatch.setattr(module.os, "access", lambda *_: False)
    build = Builder()
    for _ in range(2):
        assert converted([source], "tiny-v1", build).folder == source.parent
    assert build.calls == 1 and list((tmp_path / "cache" / "converted").glob("tiny-v1-*.safetensors"))
    assert not (source.parent / ".converted").exists()


def test_a_missing_source_is_named(source: Path) -> None:
    with pytest.raises(CheckpointError, match=r"gone\.bin is missing"):
        converted([source, source.with_name("gone.bin")], "tiny-v1", Builder())


def test_an_error_while_building_is_the_callers(source: Path) -> None:
    def fail() -> Mapping[str, Tensor | AffineTensor]:
        raise CheckpointError("The net does not fit.")

    with pytest.raises(CheckpointError, match="does not fit"):
        converted([source], "tiny-v1", fail)
    assert converted([source], "tiny-v1", Builder()).names
