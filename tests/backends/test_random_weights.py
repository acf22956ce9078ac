"""Random weights of dummy models: the same everywhere, of the right spread, made in the dtype that is held."""

from __future__ import annotations

import tracemalloc

import numpy as np
import pytest

from izwi_lab.backends import loading
from izwi_lab.backends.loading import random_weight
from izwi_lab.backends.mlx_backend import MLXBackend
from izwi_lab.backends.torch_backend import TorchBackend
from izwi_lab.families.shared.nets.decoder.config import FULL, DecoderConfig, rope

PACKAGE = "izwi_lab.families.shared.nets.decoder"


def test_matrices_are_normal_with_the_fan_in_and_scales_near_one():
    values = random_weight("a.weight", (700, 400), 0).float32()
    assert abs(values.std() * np.sqrt(400) - 1) < 0.01 and abs(values.mean()) < 1e-3
    share = np.abs(values * np.sqrt(400))
    assert abs((share < 1).mean() - 0.6827) < 0.005 and abs((share < 2).mean() - 0.9545) < 0.003 and share.max() < 4.5
    assert np.abs(np.corrcoef(values[:40]) - np.eye(40)).max() < 0.25
    norm, bias = (random_weight(n, (512,), 0).float32() for n in ("norm.weight", "a.bias"))
    assert abs(norm.mean() - 1) < 0.01 and 0.01 < norm.std() < 0.03 and abs(bias.mean()) < 0.01


def test_the_name_and_the_seed_decide():
    first = random_weight("a.weight", (8, 8), 0).data
    assert (first == random_weight("a.weight", (8, 8), 0).data).all()
    assert (first != random_weight("b.weight", (8, 8), 0).data).mean() > 0.9
    assert (first != random_weight("a.weight", (8, 8), 1).data).mean() > 0.9


def test_blocks_differ_and_do_not_depend_on_each_other():
    long, short = (random_weight("a.weight", (n, 1 << 10), 0).data.reshape(-1) for n in (3000, 1025))
    np.testing.assert_array_equal(long[: len(short)], short)
    assert (long[: 1 << 20] != long[1 << 20 : 2 << 20]).mean() > 0.9


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_values_are_equal_on_both_backends_in_any_dtype(dtype):
    c = DecoderConfig(
        vocab_size=64, hidden_size=32, intermediate_size=48, num_layers=1, num_heads=4, num_kv_heads=2, head_dim=8,
        max_positions=64, ropes=((FULL, rope(8, 1e4)),), layer_types=(FULL,),
    )  # fmt: skip
    backends = TorchBackend(dtype=dtype), MLXBackend("cpu", dtype)
    nets = [b.net(PACKAGE, "DecoderLM", c, None) for b in backends]
    for name, shape in backends[0].parameters(nets[0]).items():
        expected = random_weight(name, shape, 0, dtype)
        for backend, net in zip(backends, nets, strict=True):
            found = backend.weight(net, name)
            assert (found.dtype, found.shape) == (dtype, shape)
            np.testing.assert_array_equal(found.data, expected.data)


def test_bfloat16_is_the_nearest_to_float32():
    import torch

    wide = random_weight("a.weight", (100, 64), 0)
    expected = torch.from_numpy(wide.data).to(torch.bfloat16).float().numpy()
    np.testing.assert_array_equal(random_weight("a.weight", (100, 64), 0, "bfloat16").float32(), expected)


def test_a_matrix_is_held_once_in_its_own_dtype():
    loading._normal_table()
    tracemalloc.start()
    made = random_weight("a.weight", (16_000, 1024), 0, "bfloat16")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < made.nbytes + 16e6  # a block of numbers and the table, besides
