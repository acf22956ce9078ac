"""The CTranslate2 reader: round trips, views instead of copies, and refusal of every broken file."""

from __future__ import annotations

import json
import struct
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from izwi_lab.artifacts.checkpoint import open_checkpoint
from izwi_lab.artifacts.ctranslate2_reader import open_folder
from izwi_lab.errors import CheckpointError

CODES = {"float32": 0, "int8": 1, "int16": 2, "int32": 3, "float16": 4}


def text(value: str) -> bytes:
    raw = value.encode() + b"\0"
    return struct.pack("<H", len(raw)) + raw


def variable(name: str, array: np.ndarray, code: int | None = None) -> bytes:
    head = text(name) + struct.pack("<B", array.ndim) + b"".join(struct.pack("<I", d) for d in array.shape)
    return head + struct.pack("<BI", CODES[str(array.dtype)] if code is None else code, array.nbytes) + array.tobytes()


def model(tensors: dict[str, np.ndarray], aliases: dict[str, str] | None = None, version: int = 6) -> bytes:
    out = struct.pack("<I", version) + text("WhisperSpec") + struct.pack("<II", 3, len(tensors))
    out += b"".join(variable(n, a) for n, a in tensors.items())
    aliases = aliases or {}
    return out + struct.pack("<I", len(aliases)) + b"".join(text(a) + text(b) for a, b in aliases.items())


@pytest.fixture
def folder(tmp_path: Path):
    (tmp_path / "config.json").write_text(json.dumps({"suppress_ids": [1]}))

    def write(body: bytes) -> Path:
        (tmp_path / "model.bin").write_bytes(body)
        return tmp_path

    return write


START = struct.pack("<I", 6) + text("S") + struct.pack("<I", 1)
TENSORS = {
    "encoder/num_heads": np.array(8, np.int16),
    "a/weight": np.arange(12, dtype=np.float16).reshape(3, 4),
    "b/bias": np.linspace(-1, 1, 5, dtype=np.float32),
}


def test_reads_what_was_written(folder):
    opened = open_checkpoint(folder(model(TENSORS, {"c/weight": "a/weight"})), "ctranslate2")
    assert opened.names == (*TENSORS, "c/weight")
    assert opened.config == {"suppress_ids": [1]}
    assert opened.attributes == {"encoder/num_heads": 8}
    assert opened.shape("a/weight") == (3, 4)
    for name in ("a/weight", "b/bias"):
        tensor = opened.read(name)
        assert tensor.dtype == str(TENSORS[name].dtype)
        np.testing.assert_array_equal(tensor.data, TENSORS[name])
    np.testing.assert_array_equal(opened.read("c/weight").data, TENSORS["a/weight"])


def test_tensors_are_views_of_the_map_and_outlive_close(folder):
    opened = open_folder(folder(model(TENSORS)))
    tensor = opened.read("a/weight")
    assert not tensor.data.flags.owndata
    assert not tensor.data.flags.writeable
    opened.release()
    opened.close()
    np.testing.assert_array_equal(tensor.data, TENSORS["a/weight"])
    with pytest.raises(CheckpointError, match="holds no tensor"):
        opened.read("a/weight")


def test_int8_and_int16_matrices_become_float(folder):
    q = np.array([[1, -2], [100, 50]], np.int8)
    wide = np.array([[1000, -2000]], np.int16)
    tensors = {
        "w": q,
        "w_scale": np.array([2.0, 50.0], np.float32),
        "v": wide,
        "v_scale": np.array(1000.0, np.float32),
    }
    opened = open_folder(folder(model(tensors)))
    np.testing.assert_allclose(opened.read("w").data, [[0.5, -1.0], [2.0, 1.0]])
    np.testing.assert_allclose(opened.read("v").data, [[1.0, -2.0]])


def test_every_truncation_is_refused(folder):
    body = model(TENSORS, {"c": "a/weight"})
    for size in range(len(body)):
        with pytest.raises(CheckpointError):
            open_folder(folder(body[:size]))


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(at=st.integers(0, 400), byte=st.integers(0, 255))
def test_a_flipped_byte_never_crashes(folder, at, byte):
    body = bytearray(model(TENSORS, {"c": "a/weight"}))
    body[at % len(body)] = byte
    try:
        opened = open_folder(folder(bytes(body)))
        for name in opened.names:
            opened.read(name)
    except CheckpointError:
        pass


@pytest.mark.parametrize(
    ("body", "says"),
    [
        (model(TENSORS, version=5), "version 5, expected 6"),
        (model(TENSORS) + b"x", "bytes follow the end"),
        (model(TENSORS, {"c": "nobody"}), "'nobody', which is not in the file"),
        (START + struct.pack("<I", 2**32 - 1), "4294967295 variables cannot fit"),
        (
            START + struct.pack("<I", 1) + text("w")
            + struct.pack("<BIIBI", 2, 2**31, 2**31, 0, 4) + b"1234",
            "claims 4",
        ),
        (
            START + struct.pack("<I", 1) + text("w") + struct.pack("<B", 255) + b"x" * 99,
            "rank 255",
        ),
        (
            START + struct.pack("<I", 1) + variable("w", np.zeros(1, np.float32), code=77),
            "unknown dtype 77",
        ),
        (
            START + struct.pack("<I", 2) + 2 * variable("w", np.zeros(2, np.float32))
            + struct.pack("<I", 0),
            "appears twice",
        ),
        (b"", "cannot be opened"),
    ],
    ids=["version", "trailing", "alias", "count", "overflow", "rank", "dtype", "twice", "empty"],
)  # fmt: skip
def test_hostile_headers_are_named(folder, body, says):
    with pytest.raises(CheckpointError, match=says):
        open_folder(folder(body))


def test_missing_or_broken_config(tmp_path):
    with pytest.raises(CheckpointError, match=r"config\.json"):
        open_folder(tmp_path)
    (tmp_path / "config.json").write_text("[1]")
    (tmp_path / "model.bin").write_bytes(model(TENSORS))
    with pytest.raises(CheckpointError, match="expected a JSON object"):
        open_folder(tmp_path)
