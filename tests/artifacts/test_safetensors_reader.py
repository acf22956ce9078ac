"""The safetensors reader: right on good files, a clear error on truncated and hostile ones."""

from __future__ import annotations

import itertools
import json
import mmap
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from izwi_lab.artifacts.checkpoint import open_checkpoint
from izwi_lab.artifacts.safetensors_header import read_header
from izwi_lab.artifacts.safetensors_reader import open_file, open_folder
from izwi_lab.artifacts.tensors import AffineTensor, Tensor, unpack_codes
from izwi_lab.errors import CheckpointError

RNG = np.random.default_rng(0)


def entry(dtype: str, shape: list[Any], begin: Any, end: Any) -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}


def raw(header: object, data: bytes = b"", *, length: int | None = None) -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return (len(text) if length is None else length).to_bytes(8, "little") + text + data


def put(folder: Path, content: bytes, name: str = "model.safetensors") -> Path:
    folder.mkdir(exist_ok=True)
    (folder / name).write_bytes(content)
    return folder


def one(array: np.ndarray, dtype: str, name: str = "x") -> bytes:
    return raw({name: entry(dtype, list(array.shape), 0, array.nbytes)}, array.tobytes())


def test_every_dtype_comes_back(tmp_path: Path) -> None:
    from safetensors.numpy import save_file

    tensors = {
        t: (RNG.standard_normal((3, 4)) * 50).astype(t)
        for t in (
            "float64",
            "float32",
            "float16",
            "int64",
            "int32",
            "int16",
            "int8",
            "uint8",
            "uint16",
            "uint32",
            "uint64",
        )
    }
    tensors["bool"] = np.array([True, False])
    tensors["empty"] = np.zeros((0, 5), np.float32)
    tensors["scalar"] = np.array(7.0, np.float32)
    save_file(tensors, tmp_path / "model.safetensors", metadata={"format": "pt"})
    checkpoint = open_checkpoint(tmp_path, "hf")
    assert set(checkpoint.names) == set(tensors) and checkpoint.config == {}
    for name, expected in tensors.items():
        found = checkpoint.read(name)
        assert isinstance(found, Tensor) and found.dtype == str(expected.dtype)
        assert checkpoint.shape(name) == expected.shape == found.shape
        np.testing.assert_array_equal(found.data, expected)
        assert not found.data.flags.writeable


def test_bfloat16_travels_as_bits(tmp_path: Path) -> None:
    import torch
    from safetensors.torch import save_file

    values = torch.randn(5, 7, dtype=torch.bfloat16)
    save_file({"w": values}, tmp_path / "model.safetensors")
    found = open_folder(tmp_path).read("w")
    assert isinstance(found, Tensor) and found.dtype == "bfloat16" and found.data.dtype == np.uint16
    np.testing.assert_array_equal(found.float32(), values.float().numpy())


def test_data_is_mapped_not_loaded(tmp_path: Path) -> None:
    count = 200_000_000
    header = raw({"w": entry("U8", [count], 0, count)})
    with (tmp_path / "model.safetensors").open("wb") as file:
        file.write(header)
        file.truncate(len(header) + count)  # a hole: costs no disk, would cost memory
    checkpoint = open_folder(tmp_path)
    tensor = checkpoint.read("w")
    assert isinstance(tensor, Tensor) and tensor.data[::10_000_000].sum() == 0
    owner: Any = tensor.data
    while isinstance(owner, np.ndarray):
        owner = owner.base
    assert isinstance(owner, mmap.mmap)
    checkpoint.close()
    assert tensor.data[-1] == 0  # what was read stays valid
    with pytest.raises(CheckpointError, match="is closed"):
        checkpoint.read("w")


def test_an_odd_offset_is_read_aligned(tmp_path: Path) -> None:
    floats = RNG.standard_normal(3).astype(np.float32)
    header = {"a": entry("U8", [3], 0, 3), "b": entry("F32", [3], 3, 15)}
    put(tmp_path, raw(header, b"abc" + floats.tobytes()))
    found = open_folder(tmp_path).read("b")
    assert isinstance(found, Tensor) and found.data.flags.aligned
    np.testing.assert_array_equal(found.data, floats)


def sharded(folder: Path, weight_map: dict[str, Any], shards: dict[str, bytes]) -> Path:
    for name, content in shards.items():
        put(folder, content, name)
    put(folder, json.dumps({"weight_map": weight_map}).encode(), "model.safetensors.index.json")
    return folder


def test_shards_are_one_checkpoint(tmp_path: Path) -> None:
    a, b = np.arange(4, dtype=np.int32), np.arange(6, dtype=np.float32).reshape(2, 3)
    shards = {"m-1.safetensors": one(a, "I32", "a"), "m-2.safetensors": one(b, "F32", "b")}
    sharded(tmp_path, {"a": "m-1.safetensors", "b": "m-2.safetensors"}, shards)
    put(tmp_path, b"not read", "other.safetensors")
    checkpoint = open_folder(tmp_path)
    assert checkpoint.names == ("a", "b")
    np.testing.assert_array_equal(checkpoint.read("b").float32(), b)


@pytest.mark.parametrize(
    ("weight_map", "message"),
    [
        ({"a": "../out.safetensors"}, "names the shard"),
        ({"a": "/etc/x.safetensors"}, "names the shard"),
        ({"a": "C:\\x.safetensors"}, "names the shard"),
        ({"a": "sub/x.safetensors"}, "names the shard"),
        ({"a": "model.pkl"}, "names the shard"),
        ({"a": 5}, "names the shard"),
        ({"a": "gone.safetensors"}, "Cannot read"),
        ({"a": "m-2.safetensors"}, "not in the shard that the index names"),
        ({"a": "m-1.safetensors", "b": "m-1.safetensors"}, "not in the shard that the index names"),
        ({"a": "m-1.safetensors", "b": "m-2.safetensors", "c": "m-3.safetensors"}, "'a' is in both"),
        ({}, "no weight_map"),
        ([], "no weight_map"),
    ],
)
def test_a_bad_index_is_refused(tmp_path: Path, weight_map: Any, message: str) -> None:
    a = np.arange(4, dtype=np.int32)
    shards = {f"m-{i}.safetensors": one(a, "I32", n) for i, n in ((1, "a"), (2, "b"), (3, "a"))}
    put(tmp_path, one(a, "I32", "a"), "out.safetensors")
    with pytest.raises(CheckpointError, match=message):
        open_folder(sharded(tmp_path / "m", weight_map, shards))


GOOD = entry("F32", [2], 0, 8)
EIGHT = bytes(8)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "too short"),
        (b"\1\0\0", "too short"),
        (raw({"a": GOOD}, EIGHT, length=2**63), "announces a header"),
        (raw({"a": GOOD}, EIGHT, length=100_000_001), "announces a header"),
        (raw({"a": GOOD}, EIGHT)[:30], "announces a header"),
        (raw(b"\xff\xfe" * 8), "not valid JSON"),
        (raw(b"[" * 100_000), "not valid JSON"),
        (raw(b"[1, 2]"), "not a JSON object"),
        (raw(b'{"a": {}, "a": {}}'), "names a key twice"),
        (raw(b'{"a": {"dtype": "F32", "dtype": "F32", "shape": [2], "data_offsets": [0, 8]}}', EIGHT), "a key twice"),
        (raw({"a": GOOD}, EIGHT[:4]), "spans bytes 0..8"),
        (raw({"a": GOOD}, EIGHT + b"more"), "its header describes"),
        (raw({"a": GOOD, "b": entry("F32", [1], 4, 8)}, EIGHT), "overlaps"),
        (raw({"a": GOOD, "b": GOOD}, EIGHT), "overlaps"),
        (raw({"a": entry("F32", [1], 4, 8)}, EIGHT), "leaves a gap"),
        (raw({"a": entry("F32", [2], 8, 0)}, EIGHT), "spans bytes 8..0"),
        (raw({"a": entry("F32", [2], -8, 0)}, EIGHT), "data_offsets"),
        (raw({"a": entry("F32", [2], 0, 8.0)}, EIGHT), "data_offsets"),
        (raw({"a": entry("F32", [2], True, 8)}, EIGHT), "data_offsets"),
        (raw({"a": {**GOOD, "data_offsets": [0, 8, 9]}}, EIGHT), "data_offsets"),
        (raw({"a": entry("F32", [3], 0, 8)}, EIGHT), "needs 12 bytes"),
        (raw({"a": entry("F32", [2**62, 2**62], 0, 8)}, EIGHT), "needs"),
        (raw({"a": entry("F32", [-1], 0, 8)}, EIGHT), "has shape"),
        (raw({"a": entry("F32", ["2"], 0, 8)}, EIGHT), "has shape"),
        (raw({"a": entry("F32", [1] * 17, 0, 8)}, EIGHT), "has shape"),
        (raw({"a": entry("F8_E4M3", [8], 0, 8)}, EIGHT), "has dtype 'F8_E4M3'"),
        (raw({"a": {**GOOD, "dtype": None}}, EIGHT), "has dtype None"),
        (raw({"a": {**GOOD, "dtype": []}}, EIGHT), "has dtype"),
        (raw({"a": 5}), "not described by an object"),
        (raw({"": GOOD}, EIGHT), "name"),
        (raw({"a\x1b[2J": GOOD}, EIGHT), "unprintable"),
        (raw({"a" * 2000: GOOD}, EIGHT), "overlong name"),
        (raw({"__metadata__": {"a": 1}, "a": GOOD}, EIGHT), "table of strings"),
    ],
)
def test_a_bad_file_is_refused(tmp_path: Path, content: bytes, message: str) -> None:
    with pytest.raises(CheckpointError, match=message):
        open_folder(put(tmp_path, content))


def test_every_truncation_is_noticed(tmp_path: Path) -> None:
    whole = one(np.arange(64, dtype=np.float32), "F32")
    for cut in range(0, len(whole), 7):
        with pytest.raises(CheckpointError):
            open_folder(put(tmp_path, whole[:cut]))


@settings(max_examples=200, deadline=None)
@given(st.data())
def test_a_flipped_header_gives_an_error_or_the_same_bytes(data: st.DataObject) -> None:
    content = bytearray(raw({"a": GOOD, "b": entry("I8", [3], 8, 11)}, bytes(11)))
    for _ in range(data.draw(st.integers(1, 3))):
        content[data.draw(st.integers(0, len(content) - 12))] = data.draw(st.integers(0, 255))
    with tempfile.TemporaryDirectory() as folder:
        path = put(Path(folder), bytes(content)) / "model.safetensors"
        try:
            header = read_header(path)
        except CheckpointError:
            return
        entries = sorted(header.entries.values(), key=lambda e: e.start)
        assert all(e.start + e.nbytes == n.start for e, n in itertools.pairwise(entries))
        assert not entries or entries[-1].start + entries[-1].nbytes == len(content)


def test_which_file_of_a_folder(tmp_path: Path) -> None:
    a = np.arange(4, dtype=np.int32)
    with pytest.raises(CheckpointError, match=r"no \.safetensors"):
        open_folder(tmp_path)
    put(tmp_path, one(a, "I32", "codec"), "codec.safetensors")
    assert open_folder(tmp_path).names == ("codec",)
    put(tmp_path, one(a, "I32", "other"), "other.safetensors")
    with pytest.raises(CheckpointError, match="several weights files"):
        open_folder(tmp_path)
    put(tmp_path, one(a, "I32", "model"))
    assert open_folder(tmp_path).names == ("model",)
    assert open_file(tmp_path / "codec.safetensors").names == ("codec",)
    put(tmp_path, b"[]", "config.json")
    with pytest.raises(CheckpointError, match="not a JSON object"):
        open_folder(tmp_path)
    with pytest.raises(CheckpointError, match=r"No tensor 'ghost'"):
        open_file(tmp_path / "codec.safetensors").read("ghost")
    with pytest.raises(CheckpointError, match="No reader for layout 'zip'"):
        open_checkpoint(tmp_path, "zip")


# --- MLX quantisation -------------------------------------------------------------------------------------------


def quantised(folder: Path, bits: int, config: dict[str, Any], *, group_size: int = 32, bfloat: bool = False) -> Any:
    """Save a matrix the way mlx-lm does; returns what MLX itself dequantises it to."""
    mx = pytest.importorskip("mlx.core")
    dense = mx.random.normal((6, 128), key=mx.random.key(bits))
    q, scales, biases = mx.quantize(dense, group_size=group_size, bits=bits)
    if bfloat:
        scales, biases = scales.astype(mx.bfloat16), biases.astype(mx.bfloat16)
    tensors = {"l.proj.weight": q, "l.proj.scales": scales, "l.proj.biases": biases, "norm.weight": dense[0]}
    mx.save_safetensors(str(folder / "model.safetensors"), tensors)
    (folder / "config.json").write_text(json.dumps(config))
    wide = mx.dequantize(q, scales.astype(mx.float32), biases.astype(mx.float32), group_size=group_size, bits=bits)
    return np.array(wide)


@pytest.mark.parametrize("bits", [2, 3, 4, 5, 6, 8])
def test_mlx_matrices_are_exact_at_every_width(tmp_path: Path, bits: int) -> None:
    expected = quantised(tmp_path, bits, {"quantization": {"group_size": 32, "bits": bits}})
    checkpoint = open_checkpoint(tmp_path, "mlx")
    assert set(checkpoint.names) == {"l.proj.weight", "norm.weight"}
    found = checkpoint.read("l.proj.weight")
    assert isinstance(found, AffineTensor) is (bits in (4, 5, 6, 8))
    assert checkpoint.shape("l.proj.weight") == found.shape == (6, 128)
    np.testing.assert_array_equal(found.float32(), expected)


def test_mlx_overrides_modes_and_half_precision_scales(tmp_path: Path) -> None:
    config = {"quantization": {"group_size": 64, "bits": 4, "mode": "affine", "l.proj": {"bits": 8, "group_size": 32}}}
    expected = quantised(tmp_path, 8, config, bfloat=True)
    found = open_folder(tmp_path).read("l.proj.weight")
    assert isinstance(found, AffineTensor) and (found.bits, found.group_size) == (8, 32)
    assert found.scales.dtype == np.float32
    np.testing.assert_allclose(found.float32(), expected, rtol=1e-6)


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ({"group_size": 64, "bits": 4}, "do not fit bits=4 and group_size=64"),
        ({"group_size": 32, "bits": 8}, "do not fit"),
        ({"group_size": 32, "bits": 7}, "bits=7"),
        ({"group_size": "32", "bits": 4}, "group_size='32'"),
        ({"group_size": 32, "bits": 4, "mode": "mxfp4"}, "mode 'mxfp4'"),
        ({"group_size": 32, "bits": 4, "l.proj": {"mode": "nvfp4"}}, "mode 'nvfp4'"),
    ],
)
def test_mlx_settings_that_do_not_fit(tmp_path: Path, table: dict[str, Any], message: str) -> None:
    quantised(tmp_path, 4, {"quantization": table})
    with pytest.raises(CheckpointError, match=message):
        open_folder(tmp_path)


def test_without_a_quantisation_table_the_parts_stay_parts(tmp_path: Path) -> None:
    quantised(tmp_path, 4, {})
    assert set(open_folder(tmp_path).names) == {"l.proj.weight", "l.proj.scales", "l.proj.biases", "norm.weight"}


@pytest.mark.parametrize("bits", [2, 3, 5, 6])
def test_unpack_is_the_inverse_of_packing(bits: int) -> None:
    codes = RNG.integers(0, 2**bits, (3, 64), dtype=np.uint8)
    packed = [sum(int(c) << (i * bits) for i, c in enumerate(row)).to_bytes(64 * bits // 8, "little") for row in codes]
    words = np.frombuffer(b"".join(packed), np.uint32).reshape(3, -1)
    np.testing.assert_array_equal(unpack_codes(words, bits), codes)
