"""On the processor MLX shares the rows of a quantised matrix out among streams: same values, any thread."""

import threading

import mlx.core as mx
import numpy as np
import pytest

from izwi_lab.artifacts.quantise import affine
from izwi_lab.backends import host, streams_mlx
from izwi_lab.families.shared.nets.quant.mlx_net import AffineLinear

ROWS, COLS = 1030, 256  # no multiple of the number of parts


@pytest.fixture
def threads(monkeypatch):
    def use(count):
        monkeypatch.setattr(host, "threads", lambda: count)
        streams_mlx.spare.cache_clear()

    yield use
    streams_mlx.spare.cache_clear()


def layer(bits=4):
    values = np.random.default_rng(1).standard_normal((ROWS, COLS)).astype(np.float32)
    return AffineLinear(affine(values, bits=bits, group_size=64), mx.float32, "cpu", None)


def product(net, tokens):
    x = np.random.default_rng(2).standard_normal((1, tokens, COLS)).astype(np.float32)
    with mx.stream(mx.cpu):
        return np.array(net(mx.array(x)))


@pytest.mark.parametrize("tokens", [1, 9])  # as it is, and expanded
@pytest.mark.parametrize("bits", [4, 8])
def test_the_parts_of_a_matrix_give_what_the_whole_gives(threads, bits, tokens):
    threads(1)
    whole = layer(bits)
    assert [part[0] for part in whole._parts] == [None]
    threads(3)
    shared = layer(bits)
    assert [part[1].shape[0] for part in shared._parts] == [343, 343, 344]
    streams = [part[0] for part in shared._parts]
    assert streams[0] is None and len(set(map(id, streams))) == 3
    # Expanded products are MLX's BLAS, whose sums may depend on the width of a block.
    np.testing.assert_allclose(product(shared, tokens), product(whole, tokens), rtol=0, atol=0 if tokens == 1 else 1e-5)


def test_a_small_matrix_stays_whole(threads):
    threads(2)
    values = np.ones((64, 64), np.float32)
    net = AffineLinear(affine(values, bits=4, group_size=64), mx.float32, "cpu", None)
    assert len(net._parts) == 1


def test_the_parts_work_on_a_thread_that_did_not_load_them(threads):
    threads(2)
    net, found = layer(), []
    worker = threading.Thread(target=lambda: found.append(product(net, 1)))
    worker.start()
    worker.join()
    np.testing.assert_array_equal(found[0], product(net, 1))


def test_the_views_of_the_parts_are_no_weights(threads):
    threads(2)
    net = layer()
    assert set(net.parameters()) == {"q", "scales", "biases"}
