"""Affine quantisation against `mx.quantize`, and its error bounds."""

from __future__ import annotations

import mlx.core as mx
import numpy as np
import pytest

from izwi_lab.artifacts.quantise import affine
from izwi_lab.artifacts.tensors import Tensor
from izwi_lab.errors import InvalidInputError

RNG = np.random.default_rng(0)
NORMAL = RNG.standard_normal((40, 256)).astype(np.float32)
MATRICES = {
    "normal": NORMAL,
    "positive": np.abs(NORMAL),
    "negative and large": -1e4 * np.abs(NORMAL),
    "tiny": 1e-6 * NORMAL,
    "zeros": np.where(np.arange(256) < 128, 0, NORMAL).astype(np.float32),
    "constant": np.full((40, 256), 0.3, np.float32),
    "outliers": np.where(RNG.random((40, 256)) < 0.01, 50, 1).astype(np.float32) * NORMAL,
}


@pytest.mark.parametrize("bits", [4, 5, 6, 8])
@pytest.mark.parametrize("group_size", [32, 64, 128])
@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_codes_and_scales_are_those_of_mlx(bits, group_size, dtype):
    for name, values in MATRICES.items():
        if dtype == "float16" and name.startswith("negative"):
            continue  # its scales overflow float16 on both sides
        dense = mx.array(values).astype(getattr(mx, dtype))
        q, scales, biases = mx.quantize(dense, group_size=group_size, bits=bits)
        found = affine(tensor(dense), bits=bits, group_size=group_size)
        np.testing.assert_array_equal(found.q, np.array(q), err_msg=name)
        np.testing.assert_array_equal(found.scales, np.array(scales.astype(mx.float32)), err_msg=name)
        np.testing.assert_array_equal(found.biases, np.array(biases.astype(mx.float32)), err_msg=name)


def tensor(dense: mx.array) -> Tensor:
    if dense.dtype == mx.bfloat16:
        return Tensor(np.array(dense.view(mx.uint16)), "bfloat16")
    return Tensor.of(np.array(dense))


@pytest.mark.parametrize("bits", [4, 5, 6, 8])
@pytest.mark.parametrize("name", MATRICES)
def test_error_is_half_a_step_and_a_whole_one_at_the_far_end(bits, name):
    values = MATRICES[name]
    found = affine(values, bits=bits, group_size=64)
    step = np.repeat(np.abs(found.scales), 64, axis=1)
    codes, error = found.codes(), np.abs(found.float32().astype(np.float64) - values)
    cut = (codes == 0) | (codes == (1 << bits) - 1)
    slack = 4e-7 * np.abs(values).max()  # float32
    assert (error[~cut] <= 0.5 * step[~cut] + slack).all()
    assert (error <= step + slack).all()


def test_more_bits_and_smaller_groups_are_nearer():
    error = {(b, g): np.abs(affine(NORMAL, bits=b, group_size=g).float32() - NORMAL).mean() for b in (4, 5, 6, 8)
             for g in (32, 64, 128)}  # fmt: skip
    for group in (32, 64, 128):
        assert error[4, group] > 1.8 * error[5, group] > 3.2 * error[6, group] > 11 * error[8, group]
    for bits in (4, 5, 6, 8):
        assert error[bits, 128] > error[bits, 64] > error[bits, 32]


def test_rows_in_blocks_give_the_same(monkeypatch):
    whole = affine(NORMAL, bits=5, group_size=32)
    monkeypatch.setattr("izwi_lab.artifacts.quantise._BLOCK_VALUES", 7 * 256)
    parts = affine(NORMAL, bits=5, group_size=32)
    for name in ("q", "scales", "biases"):
        np.testing.assert_array_equal(getattr(parts, name), getattr(whole, name))


@pytest.mark.parametrize(
    ("weight", "options", "says"),
    [
        (NORMAL, {"bits": 3}, "bits=3"),
        (NORMAL, {"group_size": 16}, "group_size=16"),
        (NORMAL[:, :250], {}, r"\[40, 250\]"),
        (NORMAL[0], {}, r"\[256\]"),
        (np.where(NORMAL > 3, np.nan, NORMAL), {}, "not finite"),
        (np.where(NORMAL > 3, np.inf, NORMAL), {}, "not finite"),
    ],
)
def test_what_cannot_be_quantised_raises(weight, options, says):
    with pytest.raises(InvalidInputError, match=says):
        affine(weight.astype(np.float32), **options)
