"""GGUF: exact values, and clear errors for truncated or hostile files."""

from __future__ import annotations

import struct

import gguf
import numpy as np
import pytest

from izwi_lab.artifacts.gguf_reader import open_folder
from izwi_lab.artifacts.tensors import AffineTensor
from izwi_lab.errors import CheckpointError

KEPT = ("Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0")
KINDS = ("F32", "F16", "BF16", *KEPT)


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    folder = tmp_path_factory.mktemp("gguf")
    rng, values = np.random.default_rng(0), {}
    writer = gguf.GGUFWriter(folder / "m.gguf", "llama")
    writer.add_context_length(77)
    writer.add_token_list(["a", "é", "<|x|>"])
    writer.add_token_scores([0.5, -1.0, 2.0])
    for kind in KINDS:
        type_ = gguf.GGMLQuantizationType[kind]
        raw = gguf.quants.quantize(rng.standard_normal((6, 64)).astype(np.float32), type_)
        values[kind] = gguf.quants.dequantize(raw, type_)
        writer.add_tensor(f"t.{kind}", raw, raw_dtype=type_)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return folder, values


def test_values_are_exact(written):
    folder, values = written
    checkpoint = open_folder(folder)
    assert checkpoint.names == tuple(f"t.{k}" for k in KINDS)
    for kind, expected in values.items():
        got = checkpoint.read(f"t.{kind}")
        assert got.shape == checkpoint.shape(f"t.{kind}") == (6, 64)
        np.testing.assert_array_equal(got.float32(), expected)
        assert isinstance(got, AffineTensor) == (kind in KEPT)
    assert checkpoint.quantised == {f"t.{kind}" for kind in KEPT}


def test_metadata(written):
    checkpoint = open_folder(written[0])
    assert checkpoint.config["llama.context_length"] == 77
    assert checkpoint.config["tokenizer.ggml.tokens"] == ["a", "é", "<|x|>"]
    assert checkpoint.config["tokenizer.ggml.scores"].tolist() == [0.5, -1.0, 2.0]
    assert "nothing" not in checkpoint.config


def test_tensors_outlive_the_checkpoint_and_a_closed_one_says_so(written):
    checkpoint = open_folder(written[0])
    kept = checkpoint.read("t.F32")
    checkpoint.close()
    np.testing.assert_array_equal(kept.float32(), written[1]["F32"])
    with pytest.raises(CheckpointError):
        checkpoint.read("t.F32")


def test_every_truncation_is_an_error(written, tmp_path):
    whole = (written[0] / "m.gguf").read_bytes()
    path = tmp_path / "m.gguf"
    for size in sorted({0, 3, 8, 20, *range(24, len(whole) - 1, 97), len(whole) - 40}):
        path.write_bytes(whole[:size])
        with pytest.raises(CheckpointError):
            open_folder(tmp_path)


def test_random_damage_never_escapes_as_another_error(written, tmp_path):
    whole = (written[0] / "m.gguf").read_bytes()
    rng, path = np.random.default_rng(1), tmp_path / "m.gguf"
    for _ in range(300):
        damaged = bytearray(whole)
        for at in rng.integers(0, 500, 3):
            damaged[at] = int(rng.integers(0, 256))
        path.write_bytes(bytes(damaged))
        try:
            checkpoint = open_folder(tmp_path)
            for name in checkpoint.names:
                checkpoint.read(name)
        except CheckpointError:
            continue


def header(name=b"t", dims=(32,), kind=0, offset=0, count=1, version=3, keys=b"", key_count=0):
    body = b"GGUF" + struct.pack("<IQQ", version, count, key_count) + keys
    body += struct.pack("<Q", len(name)) + name + struct.pack("<I", len(dims))
    body += struct.pack(f"<{len(dims)}Q", *dims) + struct.pack("<IQ", kind, offset)
    return body.ljust(-(-len(body) // 32) * 32, b"\0") + b"\0" * 128


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"GGML" + b"\0" * 60, "does not start with GGUF"),
        (header(version=1), "version 1"),
        (header(version=0x03000000), "version"),
        (header(count=2**60), "claims"),
        (header(key_count=2**60), "claims"),
        (header(name=b"x" * 65), "65 bytes"),
        (header(name=b"\xff\xfe"), "UTF-8"),
        (header(name=b"a\x00b"), "name"),
        (header(name=b"../../\n"), "name"),
        (header(dims=(0,)), "shape"),
        (header(dims=(33,), kind=2), "does not fit Q4_0"),
        (header(dims=(2**62, 2**62)), "truncated"),
        (header(dims=(1,) * 5), "5 dimensions"),
        (header(kind=99), "ggml type 99"),
        (header(offset=2**63), "truncated"),
        (header(dims=(8,), offset=4), "alignment"),
        (header(key_count=1, keys=struct.pack("<Q", 1) + b"k" + struct.pack("<IIQ", 9, 8, 2**61)), "claims an array"),
        (header(key_count=1, keys=struct.pack("<Q", 1) + b"k" + struct.pack("<IIQ", 9, 9, 1)), "array of type 9"),
        (header(key_count=1, keys=struct.pack("<Q", 1) + b"k" + struct.pack("<I", 77)), "type 77"),
    ],
)
def test_hostile_headers(content, says, tmp_path):
    (tmp_path / "m.gguf").write_bytes(content)
    with pytest.raises(CheckpointError, match=says):
        open_folder(tmp_path)


def test_folders_without_one_file(tmp_path):
    with pytest.raises(CheckpointError, match=r"no \.gguf file"):
        open_folder(tmp_path)
    for name in ("a.gguf", "b.gguf"):
        (tmp_path / name).write_bytes(header())
    with pytest.raises(CheckpointError, match=r"2 \.gguf files"):
        open_folder(tmp_path)
