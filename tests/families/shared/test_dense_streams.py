"""On the processor MLX's dense products and convolutions are laid out anew and shared out: the same values."""

import threading
from types import SimpleNamespace

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest

from izwi_lab.backends import host, streams_mlx
from izwi_lab.families.shared.nets.causal_conv.mlx_net import Snake
from izwi_lab.families.shared.nets.conv_stack.mlx_net import Conv1d
from izwi_lab.families.shared.nets.decoder.mlx_net import Dense, Table

CPU, GPU = SimpleNamespace(device="cpu"), SimpleNamespace(device="gpu")
ROWS, COLS = 1030, 770  # no multiple of the number of parts
TOLERANCE = {mx.float32: 1e-4, mx.bfloat16: 0.02}  # of values around 28


@pytest.fixture(autouse=True)
def threads(monkeypatch):
    monkeypatch.setattr(host, "threads", lambda: 3)
    streams_mlx.spare.cache_clear()
    with mx.stream(mx.cpu):
        yield
    streams_mlx.spare.cache_clear()


def noise(*shape, dtype=mx.float32, seed=1):
    return mx.array(np.random.default_rng(seed).standard_normal(shape).astype(np.float32)).astype(dtype)


def near(found, expected, dtype):
    assert found.dtype == expected.dtype and found.shape == expected.shape
    scale = float(mx.abs(expected).max())
    np.testing.assert_allclose(
        np.array(found.astype(mx.float32)), np.array(expected.astype(mx.float32)), atol=scale * TOLERANCE[dtype]
    )


@pytest.mark.parametrize("tokens", [1, 7])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
def test_a_dense_layer_gives_what_the_plain_one_gives(dtype, bias, tokens):
    plain, ours = nn.Linear(COLS, ROWS, bias=bias), Dense(COLS, ROWS, bias=bias)
    for net in (plain, ours):
        net.update({"weight": noise(ROWS, COLS, dtype=dtype)} | ({"bias": noise(ROWS, dtype=dtype)} if bias else {}))
    ours.finalize(CPU)
    assert [part[2].shape for part in ours._parts._parts] == [(256, ROWS), (257, ROWS), (257, ROWS)]
    x = noise(1, tokens, COLS, dtype=dtype, seed=2)
    near(ours(x), plain(x), dtype)
    assert set(ours.parameters()) == set(plain.parameters())
    np.testing.assert_array_equal(np.array(ours.weight.astype(mx.float32)), np.array(plain.weight.astype(mx.float32)))


def test_a_head_that_is_the_embedding_too():
    plain, ours = nn.Embedding(ROWS, COLS), Table(ROWS, COLS)
    plain.weight = ours.weight = noise(ROWS, COLS)
    ours.finalize(CPU)
    x, ids = noise(1, 1, COLS), mx.array([[3, 1029]])
    near(ours.as_linear(x), plain.as_linear(x), mx.float32)
    np.testing.assert_array_equal(np.array(ours(ids)), np.array(plain(ids)))


def test_on_a_gpu_nothing_is_laid_out():
    for net in (Dense(COLS, ROWS), Table(ROWS, COLS)):
        held = net.weight
        net.finalize(GPU)
        assert net._parts is None and net.weight is held


def test_the_parts_work_on_a_thread_that_did_not_load_them():
    net, x, found = Dense(COLS, ROWS, bias=False), noise(1, 1, COLS), []
    net.finalize(CPU)
    mx.eval(net.parameters(), x)

    def work():
        with mx.stream(mx.cpu):
            found.append(np.array(net(x)))

    worker = threading.Thread(target=work)
    worker.start()
    worker.join()
    np.testing.assert_array_equal(found[0], np.array(net(x)))


@pytest.mark.parametrize(
    "options", [{}, {"dilation": 3}, {"stride": 2, "padding": 3}, {"groups": 64}, {"groups": 4}], ids=str
)
@pytest.mark.parametrize("kernel", [1, 7])
@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
def test_a_convolution_gives_what_mlx_gives(dtype, kernel, options):
    net = Conv1d(64, 64, kernel, **options)
    net.update({"weight": noise(*net.weight.shape, dtype=dtype), "bias": noise(64)})
    x = noise(2, 201, 64, seed=2)
    expected, held = net(x), np.array(net.weight.astype(mx.float32))
    net.finalize(CPU)
    assert net._multiplies == (options.get("groups") != 4)
    near(net(x), expected, dtype)
    np.testing.assert_array_equal(np.array(net.weight.astype(mx.float32)), held)


def test_a_snake_is_the_same_in_parts():
    net, x = Snake(8), noise(1, 9001, 8)
    net.alpha, net.inverse_beta = noise(8, seed=3), noise(8, seed=4)
    expected = np.array(net(x))
    net.finalize(CPU)
    np.testing.assert_array_equal(np.array(net(x)), expected)
