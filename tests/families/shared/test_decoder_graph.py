"""The fixed step that CUDA graphs capture: on the CPU the same function runs uncaptured, between the same copies."""

from __future__ import annotations

import logging

import numpy as np
import pytest
from decoder_cases import CONFIGS, TOLERANCE, VOCAB, net_of, one_thread, steps

from izwi_lab.backends.torch_backend import TorchBackend
from izwi_lab.families.shared.taps import tapping

torch = pytest.importorskip("torch")
from izwi_lab.families.shared.nets.decoder import graph_torch  # noqa: E402 - needs torch
from izwi_lab.families.shared.nets.decoder.cache_torch import frequencies  # noqa: E402 - needs torch

__all__ = ["one_thread"]
pytestmark = pytest.mark.usefixtures("one_thread")
NAMES = ("llama3-rope-biases-untied", "gemma3", "lfm2")
LONG = np.random.default_rng(8).integers(0, VOCAB, 420).astype(np.int32)


class Recorder:
    """Stands in for a capture: every replay runs the step again and writes into the first outputs."""

    def __init__(self):
        self.count = 0

    def __call__(self, step):
        self.count += 1
        for _ in range(graph_torch.WARM_UP):
            step()
        outputs = step()

        def replay():
            for held, new in zip(outputs, step(), strict=True):
                held.copy_(new)

        return replay, outputs


def with_graphs(name, capture=None, backend=None):
    backend = backend or TorchBackend()
    net, capture = net_of(backend, name), capture or Recorder()
    step = graph_torch.text_step(net, frequencies(CONFIGS[name], torch.device(backend.device)))
    net.graphs = graph_torch.Graphs(CONFIGS[name], step, capture)
    return backend, net, capture


@pytest.mark.parametrize("kv_dtype", [None, "int8"])
@pytest.mark.parametrize("name", NAMES)
def test_fixed_steps_equal_plain_ones_over_buckets_rings_and_rewinds(name, kv_dtype):
    backend, net, captures = with_graphs(name)
    pieces = [100] + [1] * 60 + [90] + [1] * 20 + [2, 1, 1]
    state, plain = net.state(kv_dtype), net_of(backend, name)
    got = steps(backend, net, LONG, pieces, state=state)
    other = plain.state(kv_dtype)
    expected = steps(backend, plain, LONG, pieces, state=other)
    near = TOLERANCE if kv_dtype is None else 0.05  # a code at a rounding edge may differ
    np.testing.assert_allclose(got, expected, atol=near)
    assert captures.count == 3  # 128, 256 and 384 positions
    for s in (state, other):
        s["length"] -= 40
    again = LONG[::-1].copy()
    got = steps(backend, net, again, [1] * 30, state=state)
    np.testing.assert_allclose(got, steps(backend, plain, again, [1] * 30, state=other), atol=near)
    assert captures.count == 3


def test_sessions_take_turns_and_a_graph_is_captured_once_per_size():
    backend, net, captures = with_graphs("gemma3")
    plain, ids = net_of(backend, "gemma3"), LONG.reshape(6, 70)
    for _ in range(3):  # one after another: the second and third find the graph free
        steps(backend, net, ids[0], [60] + [1] * 10)
    assert captures.count == 1
    states = [net.state() for _ in range(6)]  # more than there are graphs: they get their caches back
    got = [[] for _ in states]
    for at, size in ((0, 60), *((i, 1) for i in range(60, 70))):
        for state, row, out in zip(states, ids, got, strict=True):
            out.append(steps(backend, net, row[at:], [size], state=state)[0])
    assert captures.count == graph_torch.LIMIT == len(net.graphs._kept)
    for row, out in zip(ids, got, strict=True):
        np.testing.assert_allclose(out, steps(backend, plain, row, [60] + [1] * 10), atol=TOLERANCE)


def test_forks_and_results_are_not_written_over():
    backend, net, _ = with_graphs("qwen3")
    state = net.state()
    with backend.inference():
        steps(backend, net, LONG, [50, 1], state=state)
        fork = {"length": state["length"], **{n: backend.copy(state[n]) for n in ("k", "v", "conv")}}
        first, hidden = net(backend.array(LONG[None, 51:52]), state)
        kept = first.clone(), hidden.clone()
        net(backend.array(LONG[None, 90:91]), state)
        second, _ = net(backend.array(LONG[None, 51:52]), fork)
    assert torch.equal(first, kept[0]) and torch.equal(hidden, kept[1])
    torch.testing.assert_close(first, second)


def test_open_taps_take_the_plain_step():
    backend, net, captures = with_graphs("lfm2")
    state = net.state()
    steps(backend, net, LONG, [50], state=state)
    with tapping("logits", numpy=backend.numpy, array=lambda v, like: v) as taps:
        steps(backend, net, LONG, [1], state=state)
    assert captures.count == 0 and "logits" in taps
    steps(backend, net, LONG, [1], state=state)
    assert captures.count == 1


def test_a_capture_that_fails_is_logged_once_and_the_plain_step_goes_on(caplog):
    def broken(step):
        raise RuntimeError("operation not permitted when stream is capturing")

    backend, net, _ = with_graphs("gemma3", broken)
    with caplog.at_level(logging.WARNING):
        got = steps(backend, net, LONG, [60] + [1] * 10)
    assert len(caplog.records) == 1 and "not permitted" in caplog.text
    np.testing.assert_allclose(got, steps(backend, net_of(backend, "gemma3"), LONG, [60] + [1] * 10), atol=TOLERANCE)


def test_cpu_nets_have_no_graphs():
    assert net_of(TorchBackend(), "llama").graphs is None


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("kv_dtype", [None, "int8"])
@pytest.mark.parametrize("name", CONFIGS)
def test_captured_steps_equal_plain_ones_on_cuda(name, kv_dtype):
    backend = TorchBackend("cuda")
    net, plain = net_of(backend, name), net_of(backend, name)
    plain.graphs = None
    pieces = [100] + [1] * 60 + [90] + [1] * 40
    got = steps(backend, net, LONG, pieces, state=net.state(kv_dtype))
    expected = steps(backend, plain, LONG, pieces, state=plain.state(kv_dtype))
    assert not net.graphs._failed and net.graphs._kept
    np.testing.assert_allclose(got, expected, atol=1e-2 if kv_dtype is None else 0.1)  # TF32 products
