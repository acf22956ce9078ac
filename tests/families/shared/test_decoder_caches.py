"""The decoder's caches: pieces of any size, rings, int8, rewinding, and what a state must look like."""

from __future__ import annotations

import numpy as np
import pytest
from decoder_cases import CONFIGS, TOLERANCE, VOCAB, net_of, one_thread, steps
from hypothesis import given
from hypothesis import strategies as st

from izwi_lab.backends.mlx_backend import MLXBackend
from izwi_lab.backends.torch_backend import TorchBackend
from izwi_lab.errors import InvalidInputError
from izwi_lab.families.shared.nets.decoder import cache
from izwi_lab.families.shared.nets.decoder.config import BUCKET, CONV_RING

__all__ = ["one_thread"]
pytestmark = pytest.mark.usefixtures("one_thread")
BACKENDS = (TorchBackend, lambda: MLXBackend("cpu"))
both = pytest.mark.parametrize("make", BACKENDS, ids=["torch", "mlx"])
RINGS = ("gemma3", "lfm2")  # caches that turn, at 256 and at 64 positions
LONG = np.random.default_rng(7).integers(0, VOCAB, 600).astype(np.int32)


@both
@pytest.mark.parametrize("name", ["qwen3", *RINGS])
@pytest.mark.parametrize("pieces", [[599], [300, 1, 298], [255, 1, 1, 2, 70, 1, 269], [3, 64, 65, 256, 211]])
def test_pieces_of_any_size_equal_the_whole(make, name, pieces):
    backend = make()
    net = net_of(backend, name)
    whole = steps(backend, net, LONG, [600])[0]
    np.testing.assert_allclose(steps(backend, net, LONG, [*pieces, 1])[-1], whole, atol=TOLERANCE)


@both
@pytest.mark.parametrize("name", CONFIGS)
def test_every_gives_what_step_by_step_gives(make, name):
    backend = make()
    net, state, got = net_of(backend, name), None, []
    state = net.state()
    with backend.inference():
        for a, b in ((0, 250), (250, 264), (264, 265)):
            logits, hidden = net.every(backend.array(LONG[None, a:b]), state)
            assert tuple(logits.shape) == (1, b - a, VOCAB) and tuple(hidden.shape) == (1, b - a, 64)
            got.append(backend.numpy(logits)[0])
    assert state["length"] == 265
    expected = steps(backend, net, LONG, [200] + [1] * 65)
    np.testing.assert_allclose(np.concatenate(got)[199:], expected, atol=TOLERANCE)


@both
@pytest.mark.parametrize("name", ["qwen3", *RINGS])
def test_int8_caches_stay_near_and_do_not_depend_on_pieces(make, name):
    backend = make()
    net = net_of(backend, name)
    ids = LONG[:280]
    exact = steps(backend, net, ids, [240] + [1] * 40)
    state = net.state(kv_dtype="int8")
    got = steps(backend, net, ids, [240] + [1] * 40, state=state)
    assert 0 < np.abs(got - exact).max() < 0.03 * np.abs(exact).max()
    other = steps(backend, net, ids, [100, 99, 41] + [1] * 40, state=net.state(kv_dtype="int8"))
    np.testing.assert_allclose(other[2:], got, atol=0.01 * np.abs(exact).max())  # codes at a rounding edge may differ
    kinds = {str(a.dtype).rpartition(".")[2] for n in ("k", "v") for a in state[n] if a is not None}
    assert kinds == {"int8"} and cache.fits(state, CONFIGS[name])


def test_both_backends_store_the_same_int8_codes():
    states = []
    for make in BACKENDS:
        backend = make()
        net = net_of(backend, "gemma3")
        state = net.state(kv_dtype="int8")
        steps(backend, net, LONG, [270, 1, 1], state=state)
        states.append({n: [np.array(backend.numpy(a)) for a in state[n]] for n in ("k", "v", "k_scale", "v_scale")})
    for name in states[0]:
        for a, b in zip(states[0][name], states[1][name], strict=True):
            assert a.shape == b.shape
            if a.dtype == np.int8:
                assert np.abs(a.astype(int) - b).max() <= 1 and (a != b).mean() < 1e-3
            else:
                np.testing.assert_allclose(a, b, rtol=1e-4)


@both
@pytest.mark.parametrize("name", RINGS)
@pytest.mark.parametrize("kv_dtype", [None, "int8"])
def test_rewinding_within_the_ring_equals_a_fresh_run(make, name, kv_dtype):
    backend, c = make(), CONFIGS[name]
    net = net_of(backend, name)
    length = 400
    back = next(p for p in range(1, length) if c.rewindable(length, p))  # the furthest
    assert length - back >= CONV_RING - 3
    other = np.random.default_rng(2).integers(0, VOCAB, 40).astype(np.int32)
    state = net.state(kv_dtype)
    steps(backend, net, LONG, [350] + [1] * 50, state=state)
    state["length"] = back
    got = steps(backend, net, other, [20] + [1] * 20, state=state)
    fresh = steps(backend, net, np.concatenate([LONG[:back], other]), [back, 20] + [1] * 20, state=net.state(kv_dtype))
    np.testing.assert_allclose(got, fresh[1:], atol=TOLERANCE if kv_dtype is None else 0.05)


def test_rewindable_says_no_beyond_the_ring():
    assert all(CONFIGS["llama"].rewindable(500, p) for p in range(501))
    window, ring = CONFIGS["gemma3"].window, CONFIGS["gemma3"].ring_of(0)
    assert ring == 2 * BUCKET and CONFIGS["gemma3"].ring_of(2) == 0
    for length in (ring, ring + 1, 500):
        allowed = {p for p in range(length + 1) if CONFIGS["gemma3"].rewindable(length, p)}
        # position p sees p - window + 1 .. p; slots hold the last `ring` positions
        assert allowed == {0, *(p for p in range(length + 1) if max(0, p + 1 - window) >= length - ring)}
    assert CONFIGS["lfm2"].rewindable(100, 38) and not CONFIGS["lfm2"].rewindable(100, 37)
    assert CONFIGS["lfm2"].rewindable(64, 1) and not CONFIGS["lfm2"].rewindable(100, 101)


@both
@pytest.mark.parametrize("name", RINGS)
def test_a_rewind_that_is_refused_would_be_wrong(make, name):
    backend, c, length = make(), CONFIGS[name], 400
    net = net_of(backend, name)
    state = net.state()
    steps(backend, net, LONG, [length], state=state)
    far = 5
    assert not c.rewindable(length, far)
    state["length"] = far
    got = steps(backend, net, LONG[far:], [1], state=state)
    assert np.abs(got - steps(backend, net, LONG, [far + 1])).max() > 100 * TOLERANCE


@given(first=st.integers(0, 700), count=st.integers(0, 256), ring=st.sampled_from([0, 64, 256]))
def test_slot_runs_name_every_position_once_in_order(first, count, ring):
    count = min(count, ring) if ring else count
    slots = [s for a, b in cache.slot_runs(first, first + count, ring) for s in range(a, b)]
    assert slots == [p % ring if ring else p for p in range(first, first + count)]


@both
def test_caches_grow_in_buckets_up_to_the_ring(make):
    backend = make()
    net = net_of(backend, "gemma3")
    state, rooms = net.state(), []
    assert state == {"length": 0, "k": [], "v": [], "conv": []} and cache.fits(state, CONFIGS["gemma3"])
    for end in (1, 129, 257, 500):
        steps(backend, net, LONG, [end - state["length"]], state=state)
        rooms.append([a.shape[2] for a in state["k"]])
        assert cache.fits(state, CONFIGS["gemma3"])
    assert rooms == [[128, 128, 128], [256, 256, 256], [256, 256, 384], [256, 256, 512]]
    lfm2 = net_of(backend, "lfm2")
    state = lfm2.state()
    steps(backend, lfm2, LONG, [3], state=state)
    assert state["k"][0] is None and state["conv"][1] is None and tuple(state["conv"][0].shape) == (1, CONV_RING, 64)


def test_states_of_other_nets_do_not_fit():
    backend = TorchBackend()
    states = {}
    for name in ("llama", *RINGS):
        net = net_of(backend, name)
        states[name] = net.state()
        steps(backend, net, LONG, [300], state=states[name])
    for name, state in states.items():
        assert [n for n in states if cache.fits(state, CONFIGS[n])] == [name]
    llama = states["llama"]
    for broken in (
        {**llama, "length": 1000},
        {**llama, "length": -1},
        {**llama, "length": True},
        {**llama, "v": []},
        {**llama, "k": llama["k"][:2]},
        {**llama, "extra": []},
        {**llama, "k_scale": [], "v_scale": []},
        {"length": 4, "k": [], "v": [], "conv": []},
        {"length": 0},
        None,
    ):
        assert not cache.fits(broken, CONFIGS["llama"])


@both
def test_an_unknown_cache_dtype_is_refused(make):
    with pytest.raises(InvalidInputError, match="int8"):
        net_of(make(), "llama").state(kv_dtype="int4")
