"""Frames made in one go: on the CPU the step that CUDA graphs capture runs uncaptured, between the same copies."""

from __future__ import annotations

import dataclasses
import logging
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import tiny_tts
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from tts_models import by_hand, checkpoint, ours
from tts_nets import checkpoint as tensors

from izwi_lab.backends.torch_backend import TorchBackend
from izwi_lab.errors import InvalidInputError
from izwi_lab.families.qwen3_tts import graph_torch, weights
from izwi_lab.families.qwen3_tts.config import TTSConfig
from izwi_lab.families.shared.nets.decoder.graph_torch import LIMIT, WARM_UP, cuda_capture
from izwi_lab.families.shared.sampling import Sampling, plain_rules
from izwi_lab.families.shared.steps import Prompt

GREEDY = {"sampling": Sampling(), "predictor": Sampling()}
NARROW = {"sampling": Sampling(temperature=1.0), "predictor": Sampling(temperature=1.3, top_p=0.9, min_p=0.02)}
TEXTS = {8: "Hello.", 9: "world, how"}  # by seed: neither ends early
SPEECH = {"greedy": GREEDY, "seeded": {}, "seeded-narrow": NARROW}
pytestmark = pytest.mark.usefixtures("one_thread")


class Recorder:
    """Stands in for a capture: every replay runs the step again and writes into the first outputs."""

    def __init__(self):
        self.count = self.replays = 0

    def __call__(self, step):
        self.count += 1
        for _ in range(WARM_UP):
            step()
        outputs = step()

        def replay():
            self.replays += 1
            for held, new in zip(outputs, step(), strict=True):
                held.copy_(new)

        return replay, outputs


@pytest.fixture(scope="module")
def pairs(tmp_path_factory):
    """Two models of the same weights that take the plain path; by whether the predictor is narrower than the talker."""
    made = {}

    def give(projected):
        if projected not in made:
            folder = checkpoint(tmp_path_factory.mktemp("c") / "c", projected=projected)
            made[projected] = ours(folder), ours(folder)
            for model in made[projected]:
                assert model.net.whole is None  # on the CPU nothing is waited for
                model.net.compiled = None
        return made[projected]

    return give


@pytest.fixture
def models(pairs, request):
    """(model with whole frames, model without, what stands in for the capture)."""
    whole, plain = pairs(getattr(request, "param", True))
    record = Recorder()
    whole.net.whole = frames_of(whole.net, record)
    yield whole, plain, record
    whole.net.whole = None


def frames_of(net, capture):
    return graph_torch.Frames(net, net.talker.model._frequencies, capture)


def go_on(model, session, frames, sampling=None, predictor=None):
    step = model.last(session)
    for _ in range(frames):
        step = model.decode(session, model.sample(session, step, sampling), sampling=predictor)
    return step


def begun(model, text="Hello.", **options):
    session = model.session(**options)
    model.prefill(session, model.tokenize(text))
    return session


@pytest.mark.parametrize("kv_dtype", [None, "int8"])
@pytest.mark.parametrize("kind", SPEECH)
@pytest.mark.parametrize("models", [True, False], ids=["projected", "wide"], indirect=True)
def test_codes_and_logits_equal_those_of_the_plain_path(models, kind, kv_dtype):
    whole, plain, record = models
    sessions = [begun(m, seed=5, kv_dtype=kv_dtype) for m in (whole, plain)]
    steps = [go_on(m, s, 8, **SPEECH[kind]) for m, s in zip((whole, plain), sessions, strict=True)]
    assert sessions[0].codes.shape == (16, 8) and len(np.unique(sessions[0].codes)) > 20
    np.testing.assert_array_equal(sessions[0].codes, sessions[1].codes)
    np.testing.assert_array_equal(steps[0].codes, sessions[0].codes[:, -1])
    near = 1e-4 if kv_dtype is None else 0.05  # a code at a rounding edge may differ
    np.testing.assert_allclose(steps[0].numpy(), steps[1].numpy(), atol=near)
    assert steps[0].index == steps[1].index and sessions[0].position == sessions[1].position
    assert sessions[0].rng.random() == sessions[1].rng.random()  # as many numbers were drawn
    assert (record.count, record.replays) == (1, 8)


def test_the_last_frame_is_not_read_by_the_talker(models):
    whole, plain, record = models
    sessions = [by_hand(m, m.tokenize("Hello."), frames=4, seed=3) for m in (whole, plain)]
    np.testing.assert_array_equal(sessions[0].codes, sessions[1].codes)
    assert record.replays == 3 and sessions[0].position == sessions[1].position
    one = begun(whole, max_frames=1)
    position = one.position
    go_on(whole, one, 1)
    assert one.finish_reason == "length" and one.position == position == one.state["talker"]["length"]


def test_caches_grow_and_the_context_fills(models, monkeypatch):
    monkeypatch.setattr(graph_torch, "ROOM", 128)
    whole, plain, record = models
    layout = whole.tokenize("Hello.").extras["layout"]
    for length, frames, captures in ((122, 12, 2), (1020, 5, 3)):  # 128 and 256 positions, then all 1024
        long = dataclasses.replace(layout, text=np.resize(layout.text, length), codec=np.resize(layout.codec, length))
        prompt = Prompt(long.text, extras={"layout": long})
        sessions = [by_hand(m, prompt, frames=frames, **GREEDY) for m in (whole, plain)]
        np.testing.assert_array_equal(sessions[0].codes, sessions[1].codes)
        assert sessions[0].codes.shape == (16, frames) and sessions[0].finish_reason == "length"
        assert record.count == captures
    assert sessions[0].position == whole.config.talker.max_positions


def test_sizes_of_caches_are_few():
    assert [graph_torch._room(n, 5000) for n in (1, 512, 513, 1025, 4097)] == [512, 512, 1024, 2048, 5000]


def test_sessions_take_turns_and_forks_go_their_own_way(models):
    whole, plain, record = models
    expected = [begun(plain, text, seed=n) for n, text in TEXTS.items()]
    for session, kind in zip(expected, ("seeded", "greedy"), strict=True):
        go_on(plain, session, 6, **SPEECH[kind])
    first, second = (begun(whole, text, seed=n) for n, text in TEXTS.items())
    for _ in range(3):
        go_on(whole, first, 1)
        go_on(whole, second, 1, **GREEDY)
    fork = first.fork()
    go_on(whole, second, 3, **GREEDY)
    go_on(whole, first, 3)
    elsewhere = fork.fork()
    go_on(whole, elsewhere, 2, **GREEDY)
    step = go_on(whole, fork, 3)
    kept = step.numpy().copy()
    for session, other in ((first, 0), (second, 1), (fork, 0)):
        np.testing.assert_array_equal(session.codes, expected[other].codes)
    go_on(whole, elsewhere, 2)
    np.testing.assert_array_equal(step.numpy(), kept)  # not written over
    assert record.count <= LIMIT
    many = [begun(whole, seed=8) for _ in range(LIMIT + 2)]  # more than there are graphs: they get their caches back
    for _ in range(6):
        for session in many:
            go_on(whole, session, 1)
    assert all(np.array_equal(session.codes, expected[0].codes) for session in many)


def test_threads_share_graphs(models):
    whole, plain, record = models
    seeds = range(20, 20 + LIMIT + 2)  # more than there are graphs
    expected = [by_hand(plain, plain.tokenize("Hello."), frames=5, seed=n).codes for n in seeds]
    with ThreadPoolExecutor(len(seeds)) as pool:
        every = pool.map(lambda n: by_hand(whole, whole.tokenize("Hello."), frames=5, seed=n).codes, seeds)
        for got, wanted in zip(every, expected, strict=True):
            np.testing.assert_array_equal(got, wanted)
    assert record.count <= LIMIT


def test_a_session_goes_back_and_on(models, tmp_path):
    whole, plain, _ = models
    expected = begun(plain)
    go_on(plain, expected, 6, **GREEDY)
    session = begun(whole)
    go_on(whole, session, 6, **GREEDY)
    for kept in (4, 0):
        session.trim(len(session.prompt_ids) + kept)
        session.save(tmp_path / "session")
        loaded = whole.session()
        loaded.load(tmp_path / "session")
        for one in (session, loaded):
            go_on(whole, one, 6 - kept, **GREEDY)
            np.testing.assert_array_equal(one.codes, expected.codes)


@pytest.mark.parametrize("captured", [True, False])
@pytest.mark.parametrize("kind", ["greedy", "seeded"])
def test_logits_that_are_no_numbers_raise_and_the_session_stays(models, kind, captured):
    whole, plain, record = models
    if not captured:
        whole.net.whole = frames_of(whole.net, None)
    head = whole.net.talker.code_predictor.lm_head[3].weight
    sessions = [begun(m, seed=1) for m in (whole, plain)]
    for m, session in zip((whole, plain), sessions, strict=True):
        go_on(m, session, 2, **SPEECH[kind])
    with torch.inference_mode():
        before = head.clone()
        head.fill_(float("nan"))
    session, position = sessions[0], sessions[0].position
    state = session.rng.bit_generator.state
    with pytest.raises(InvalidInputError, match="NaN"):
        go_on(whole, session, 1, **SPEECH[kind])
    with torch.inference_mode():
        head.copy_(before)
    assert session.position == session.state["talker"]["length"] == position and session.codes.shape[1] == 2
    session.rng.bit_generator.state = state
    for m, one in zip((whole, plain), sessions, strict=True):
        go_on(m, one, 2, **SPEECH[kind])
    np.testing.assert_array_equal(session.codes, sessions[1].codes)
    assert record.count == captured


def test_open_taps_take_the_plain_path(models):
    whole, plain, record = models
    with whole.tap(["predictor.logits", "talker.logits"]) as seen:
        session = by_hand(whole, whole.tokenize("Hello."), frames=3, seed=2)
    assert record.count == 0 and len(seen.history["predictor.logits"]) == 3 * 15
    np.testing.assert_array_equal(session.codes, by_hand(plain, plain.tokenize("Hello."), frames=3, seed=2).codes)


def test_without_graphs_and_where_a_capture_fails_frames_are_made_step_by_step(models, caplog):
    def broken(step):
        raise RuntimeError("operation not permitted when stream is capturing")

    whole, plain, _ = models
    expected = by_hand(plain, plain.tokenize("Hello."), frames=5, seed=4).codes
    whole.net.whole = frames_of(whole.net, None)
    np.testing.assert_array_equal(by_hand(whole, whole.tokenize("Hello."), frames=5, seed=4).codes, expected)
    whole.net.whole = frames_of(whole.net, broken)
    with caplog.at_level(logging.WARNING):
        np.testing.assert_array_equal(by_hand(whole, whole.tokenize("Hello."), frames=5, seed=4).codes, expected)
    assert len(caplog.records) == 1 and "not permitted" in caplog.text


class Unread(TorchDispatchMode):
    """Raises where the host would wait for a number."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        assert not {"_local_scalar_dense", "nonzero", "equal"} & {func.__name__.partition(".")[0]}, func
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("kind", SPEECH)
def test_a_frame_is_waited_for_once(models, kind, monkeypatch):
    whole, _, _ = models
    session = begun(whole, seed=1)
    go_on(whole, session, 1, **SPEECH[kind])
    code = whole.sample(session, session.last, SPEECH[kind].get("sampling"))
    fetched, real = [], torch.Tensor.tolist
    monkeypatch.setattr(torch.Tensor, "tolist", lambda tensor: fetched.append(tuple(tensor.shape)) or real(tensor))
    for captured in (True, False):
        if not captured:
            whole.net.whole = frames_of(whole.net, None)
        with Unread():
            whole.decode(session, code, sampling=SPEECH[kind].get("predictor"))
    assert fetched == [(2, 15)] * 2


@pytest.mark.parametrize("kv_dtype", [None, "int8"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("projected", [True, False])
def test_the_captured_step_reads_nothing_and_stays_on_its_device(projected, dtype, kv_dtype):
    """On torch's device without values: to read one, or to mix in what lies elsewhere, raises there."""
    values, backend = tiny_tts.config(projected=projected), TorchBackend("meta", dtype)
    net = backend.net(weights.PACKAGE, "TTSNet", TTSConfig.from_hf(values), tensors(tiny_tts.weights(values)))
    step, state = graph_torch.frame_step(net, net.talker.model._frequencies), net.state(kv_dtype)
    at, numbers = (torch.zeros(n, dtype=torch.int64, device="meta") for n in (1, 16))
    with backend.inference():
        _, hidden = net.talk(backend.array(np.zeros((1, 5, tiny_tts.WIDTH), np.float32)), state)
        for sampling in (Sampling(), Sampling(temperature=0.9, top_k=50), NARROW["predictor"]):
            rules = plain_rules(sampling, tiny_tts.CODES)
            chosen, logits, last = step(state, at, (hidden, hidden[None], numbers), rules)
            assert (chosen.shape, chosen.dtype, chosen.device.type) == ((2, 15), torch.float32, "meta")
            assert logits.shape == (1, tiny_tts.CODES + 1024) and last.dtype == backend.torch_dtype


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("kv_dtype", [None, "int8"])
@pytest.mark.parametrize("projected", [True, False])
def test_captured_frames_equal_plain_ones_on_cuda(projected, kv_dtype):
    backend, values = TorchBackend("cuda"), tiny_tts.config("voice_design", projected=projected)
    config, rng = TTSConfig.from_hf(values), np.random.default_rng(1)
    net = backend.net(weights.PACKAGE, "TTSNet", config, tensors(tiny_tts.weights(values)))
    assert net.whole is not None
    frames, plain = frames_of(net, cuda_capture), frames_of(net, None)
    x = backend.array(rng.standard_normal((1, 120, tiny_tts.WIDTH)).astype(np.float32))
    row = backend.array(rng.standard_normal((1, 1, tiny_tts.WIDTH)).astype(np.float32))
    with backend.inference():
        state = net.state(kv_dtype)
        _, hidden = net.talk(x, state)
        for n, sampling in enumerate((Sampling(), *[Sampling(temperature=0.9, top_k=50)] * 12)):
            rules, shares = plain_rules(sampling, tiny_tts.CODES), rng.integers(0, 2**31, 15).tolist()
            other = backend.copy(state)
            expected = plain.run(hidden, n, row, other, rules, shares)
            codes, tops, (logits, hidden) = frames.run(hidden, n, row, state, rules, shares)
            assert codes == expected[0]
            np.testing.assert_allclose(tops, expected[1], atol=1e-2)
            near = 1e-2 if kv_dtype is None else 0.1  # TF32 products
            np.testing.assert_allclose(backend.numpy(logits), backend.numpy(expected[2][0]), atol=near)
    assert not frames._graphs._failed and frames._graphs._kept
