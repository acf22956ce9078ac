"""Quantised ggml blocks as affine groups: the same float32 values as ggml's own, whatever the scales."""

from __future__ import annotations

import struct

import gguf
import numpy as np
import pytest

from izwi_lab.artifacts.gguf_blocks import AFFINE, affine
from izwi_lab.artifacts.gguf_reader import open_folder
from izwi_lab.artifacts.tensors import AffineTensor, pack_codes, unpack_codes

# bytes of a block, and where its float16 scales are
BLOCKS = {
    "Q4_0": (18, (0,)),
    "Q4_1": (20, (0, 2)),
    "Q5_0": (22, (0,)),
    "Q5_1": (24, (0, 2)),
    "Q8_0": (34, (0,)),
    "Q4_K": (144, (0, 2)),
    "Q5_K": (176, (0, 2)),
    "Q6_K": (210, (208,)),
}
SCALES = np.asarray([0, 1, -3.3, 0.0123, 6e-8, -6e-8, 6e-5, 65504, -65504, 511.75], np.float16)
ROWS, WIDTH = 80, 512


def blocks(kind: str, scales: np.ndarray = SCALES) -> np.ndarray:
    """Random bytes with chosen scales: uint8 [ROWS, bytes]."""
    size, places = BLOCKS[kind]
    rng = np.random.default_rng(len(kind) + size)
    raw = rng.integers(0, 256, (ROWS, WIDTH // AFFINE[kind][1], size), dtype=np.uint8)
    for at in places:
        raw[..., at : at + 2] = rng.choice(scales, raw.shape[:2]).astype("<f2")[..., None].view(np.uint8)
    return raw.reshape(ROWS, -1)


def test_every_kind_is_tested():
    assert set(AFFINE) == set(BLOCKS)


@pytest.mark.parametrize("kind", BLOCKS)
def test_values_are_those_of_ggml_to_the_last_bit(kind):
    raw = blocks(kind)
    expected = gguf.quants.dequantize(raw, gguf.GGMLQuantizationType[kind])
    found = affine(kind, raw.reshape(-1), (ROWS, WIDTH))
    assert (found.bits, found.group_size) == (AFFINE[kind][0], AFFINE[kind][2])
    assert found.shape == (ROWS, WIDTH) and np.isfinite(expected).all() and np.abs(expected).max() > 1e5
    np.testing.assert_array_equal(found.float32(), expected)


@pytest.mark.parametrize("kind", BLOCKS)
def test_steps_are_the_same_scales(kind):
    found = affine(kind, blocks(kind).reshape(-1), (ROWS, WIDTH))
    for steps, whole in ((found.scale_steps, found.scales), (found.bias_steps, found.biases)):
        if steps is not None:
            np.testing.assert_array_equal(steps.float32(), whole)
    assert (found.scale_steps is not None) == kind.endswith("_K")
    assert (found.bias_steps is not None) == (kind in ("Q4_K", "Q5_K"))


@pytest.mark.parametrize("kind", ["Q4_0", "Q5_0", "Q8_0"])
def test_ordinary_scales_stay_float16(kind):
    usual = affine(kind, blocks(kind, np.asarray([0.01, -0.5], np.float16)).reshape(-1), (ROWS, WIDTH))
    assert usual.scales.dtype == usual.biases.dtype == np.float16
    huge = affine(kind, blocks(kind).reshape(-1), (ROWS, WIDTH))  # 65504 * 128 is no float16
    assert huge.scales.dtype == huge.biases.dtype == np.float32


@pytest.mark.parametrize("kind", BLOCKS)
def test_rows_can_be_taken(kind):
    found = affine(kind, blocks(kind).reshape(-1), (ROWS, WIDTH))
    order = np.asarray([5, 3, 3, 79])
    taken = found.rows(order)
    np.testing.assert_array_equal(taken.float32(), found.float32()[order])
    if taken.scale_steps is not None:
        np.testing.assert_array_equal(taken.scale_steps.float32(), taken.scales)


def test_many_rows_are_unpacked_in_pieces(monkeypatch):
    monkeypatch.setattr("izwi_lab.artifacts.gguf_blocks._ROWS_VALUES", 7 * WIDTH)  # 80 is no multiple of 7
    for kind in BLOCKS:
        raw = blocks(kind)
        expected = gguf.quants.dequantize(raw, gguf.GGMLQuantizationType[kind])
        np.testing.assert_array_equal(affine(kind, raw.reshape(-1), (ROWS, WIDTH)).float32(), expected)


@pytest.mark.parametrize("bits", range(1, 9))
def test_codes_of_any_width_survive_packing(bits):
    codes = np.random.default_rng(bits).integers(0, 1 << bits, (3, 96), dtype=np.uint8)
    packed = pack_codes(codes, bits)
    assert packed.shape == (3, 3 * bits)
    np.testing.assert_array_equal(unpack_codes(packed, bits), codes)
    whole = int.from_bytes(packed[1].tobytes(), "little")  # a plain bit stream, first code lowest
    assert [(whole >> (bits * k)) & ((1 << bits) - 1) for k in range(96)] == codes[1].tolist()


def test_k_quants_stay_quantised_in_a_file_and_smaller_kinds_are_expanded(tmp_path):
    values = {}
    writer = gguf.GGUFWriter(tmp_path / "m.gguf", "llama")
    sizes = {**{k: size for k, (size, _) in BLOCKS.items() if k.endswith("_K")}, "Q2_K": 84, "Q3_K": 110}
    for kind, size in sizes.items():
        raw = np.random.default_rng(size).integers(0, 60, (4, size), dtype=np.uint8)
        values[kind] = gguf.quants.dequantize(raw, gguf.GGMLQuantizationType[kind])
        writer.add_tensor(f"t.{kind}", raw, raw_dtype=gguf.GGMLQuantizationType[kind])
    for step in (writer.write_header_to_file, writer.write_kv_data_to_file, writer.write_tensors_to_file, writer.close):
        step()
    assert (tmp_path / "m.gguf").read_bytes()[:8] == b"GGUF" + struct.pack("<I", 3)
    checkpoint = open_folder(tmp_path)
    assert checkpoint.quantised == {"t.Q4_K", "t.Q5_K", "t.Q6_K"}
    for kind, expected in values.items():
        found = checkpoint.read(f"t.{kind}")
        assert isinstance(found, AffineTensor) == (kind in AFFINE)
        np.testing.assert_array_equal(found.float32(), expected)
