"""The compiled step against the plain net: every cache form, piece size, switch and number of threads."""

from __future__ import annotations

import dataclasses
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from decoder_cases import CONFIGS, PACKAGE, TOLERANCE, VOCAB, shapes_of, weights_for

from izwi_lab.artifacts.tensors import AffineTensor
from izwi_lab.backends import native
from izwi_lab.backends.torch_backend import TorchBackend
from izwi_lab.families.shared.nets.decoder.config import FULL, SLIDING, rope

MIXED = (300, 1, 2, 3, 7, 64, 1, 1)  # over the turn of the rings at 256 and 64 positions
SMALL_FIRST = (1, 64, 3, 2, 7, 1, 300)
IDS = torch.from_numpy(np.random.default_rng(8).integers(0, VOCAB, (1, 400)))
ONE_CODE = 0.01  # a rounding edge crossed in int8 caches, of the largest logit


@pytest.fixture(scope="module", autouse=True)
def compiled():
    assert native.library("decoder", wait=True) is not None, native.status()


@pytest.fixture
def threads():
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def built():
    """Nets by name: the compiled step, and the plain net. Building them is most of the work."""
    nets = {name: pair(config, weights_for(name)) for name, config in CONFIGS.items()}
    odd = dataclasses.replace(
        CONFIGS["gemma3"],
        hidden_size=72, intermediate_size=100, num_heads=7, num_kv_heads=1, head_dim=20, vocab_size=149,
        ropes=((FULL, rope(20, 1e6)), (SLIDING, rope(20, 1e4))),
    )  # fmt: skip
    return {**nets, "odd": pair(odd, weights_for("gemma3", shapes_of(odd)))}


def pair(config, weights, dtype="float32"):
    net = TorchBackend(dtype=dtype).net(PACKAGE, "DecoderLM", config, weights)
    step, net.step = net.step, None
    assert step is not None and step.ready()
    return step, net


def walk(call, state, sizes, ids=IDS):
    """Logits [T, V] of every position."""
    out, at = [], 0
    with torch.inference_mode():
        for size in sizes:
            logits, hidden = call(ids[:, at : at + size], state)
            assert logits.shape[:2] == hidden.shape[:2] == (1, size) and state["length"] == at + size
            out.append(logits[0].float())
            at += size
    return torch.cat(out)


def every(step):
    return lambda ids, state: step.run(ids, state, every=True)


def close(got, expected, atol=TOLERANCE):
    np.testing.assert_allclose(got.numpy(), expected.numpy(), atol=atol)


@pytest.mark.parametrize("sizes", [MIXED, SMALL_FIRST], ids=["long-first", "small-first"])
@pytest.mark.parametrize("name", [*CONFIGS, "odd"])
def test_every_position_of_every_piece(built, threads, name, sizes):
    step, net = built[name]
    ids = IDS % net.config.vocab_size
    expected = walk(net.every, net.state(), sizes, ids)
    assert expected.abs().max() > 1
    for count in (1, 2, 3):
        threads(count)
        state = net.state()
        close(walk(every(step), state, sizes, ids), expected)
        for i, k in enumerate(state["k"]):
            assert k is None or k.shape[2] <= (net.config.ring_of(i) or k.shape[2])


@pytest.mark.parametrize("name", ["qwen3", "gemma3", "lfm2", "odd"])
def test_int8_caches(built, name):
    step, net = built[name]
    ids = IDS % net.config.vocab_size
    plain, ours = net.state("int8"), net.state("int8")
    expected = walk(net.every, plain, MIXED, ids)
    got = walk(every(step), ours, MIXED, ids)
    close(got, expected, ONE_CODE * expected.abs().max().item())
    exact = walk(net.every, net.state(), MIXED, ids)
    assert (got - exact).abs().max() > 2 * (got - expected).abs().mean()  # the caches are int8 indeed
    for side in ("k", "v"):
        for a, b in zip(plain[side], ours[side], strict=True):
            if a is not None:
                off = (a.int() - b.int()).abs()
                assert a.dtype == b.dtype == torch.int8 and off.max() <= 1 and off.float().mean() < 1e-3


@pytest.mark.parametrize("name", CONFIGS)
def test_only_the_last_position_by_default(built, name):
    step, net = built[name]
    with torch.inference_mode():
        for size in (1, 3, 64):
            logits, hidden = step.run(IDS[:, :size], net.state())
            whole, states = step.run(IDS[:, :size], net.state(), every=True)
            assert logits.shape == (1, VOCAB) and hidden.shape == (1, net.config.hidden_size)
            close(logits, whole[:, -1], 1e-5)
            close(hidden, states[:, -1], 1e-5)


@pytest.mark.parametrize("kv_dtype", [None, "int8"])
@pytest.mark.parametrize("name", CONFIGS)
def test_plain_and_compiled_pieces_mix_on_one_state(built, name, kv_dtype):
    step, net = built[name]
    turns = iter((net.every, every(step)) * len(MIXED))
    got = walk(lambda ids, state: next(turns)(ids, state), net.state(kv_dtype), MIXED)
    expected = walk(net.every, net.state(kv_dtype), MIXED)
    close(got, expected, ONE_CODE * expected.abs().max().item() if kv_dtype else TOLERANCE)


@pytest.mark.parametrize("name", CONFIGS)
def test_rewound_and_forked_states(built, name):
    step, net = built[name]
    state = net.state()
    walk(every(step), state, MIXED[:-1])
    length, back = state["length"], state["length"] - 40
    assert net.config.rewindable(length, back)
    fork = TorchBackend().copy(state)
    with torch.inference_mode():
        state["length"] = back
        again, _ = step.run(IDS[:, :30], state, every=True)
        ahead, _ = step.run(IDS[:, length : length + 5], fork)
        plain, other = net.state(), net.state()
        net(torch.cat((IDS[:, :length], IDS[:, length : length + 5]), dim=1)[:, :-5], other)
        close(ahead, net(IDS[:, length : length + 5], other)[0])
        net(IDS[:, :back], plain)
        close(again, net.every(IDS[:, :30], plain)[0])


@pytest.mark.parametrize("name", ["qwen3", "gemma3", "lfm2"])
def test_sequences_together_equal_each_alone(built, threads, name):
    step, net = built[name]
    held = [(0, 5, None), (300, 1, None), (70, 1, "int8"), (255, 130, None), (9, 1, None), (128, 2, "int8")]
    alone, pieces = [], []
    with torch.inference_mode():
        for before, size, kv_dtype in held:
            state = net.state(kv_dtype)
            if before:
                step.run(IDS[:, :before], state)
            ids = IDS[:, before : before + size].clone()
            alone.append(step.run(ids, TorchBackend().copy(state)))
            pieces.append((ids, state))
        for count in (1, 2, 3):
            threads(count)
            for some in (pieces, [p for p in pieces if p[0].numel() == 1]):  # the second: one position each
                copies = [(ids, TorchBackend().copy(state)) for ids, state in some]
                logits, hidden = step.run_together(copies)
                expected = [alone[i] for i, p in enumerate(pieces) if any(p is q for q in some)]
                for i, (want, want_hidden) in enumerate(expected):
                    loose = 5e-2 if "k_scale" in copies[i][1] else TOLERANCE  # a code of the new positions may differ
                    close(logits[i : i + 1], want, loose)
                    close(hidden[i : i + 1], want_hidden, loose)
                assert [s["length"] for _, s in copies] == [s["length"] + ids.numel() for ids, s in some]


def test_two_sessions_at_once(built):
    step, net = built["gemma3"]
    sizes = (64, *[1] * 60, 7, 200)
    ids = (IDS, IDS.flip(1))
    expected = [walk(net.every, net.state(), sizes, x) for x in ids]
    with ThreadPoolExecutor(2) as pool:
        jobs = [pool.submit(walk, every(step), net.state(), sizes, x) for x in ids]
        for job, want in zip(jobs, expected, strict=True):
            close(job.result(timeout=300), want)


def affine(weights, bits, group_size):
    rng, out = np.random.default_rng(bits), {}
    for key, w in weights.items():
        rows, cols = w.shape if len(w.shape) == 2 else (0, 0)
        if not cols or cols % group_size:
            out[key] = w
            continue
        q = rng.integers(0, 2**32, (rows, cols * bits // 32), dtype=np.uint32)
        scales = ((rng.random((rows, cols // group_size)) + 0.5) * 4 / (2**bits * np.sqrt(cols))).astype(np.float32)
        out[key] = AffineTensor(q, scales, -scales * 2 ** (bits - 1), bits, group_size)
    return out


@pytest.mark.parametrize(
    ("name", "bits", "group_size"),
    [("gemma3", 4, 32), ("lfm2", 6, 16), ("llama3-rope-biases-untied", 5, 32), ("lfm2", 8, 64)],
)
def test_quantised_pieces(name, bits, group_size):
    config = dataclasses.replace(CONFIGS[name], intermediate_size=128, vocab_size=149)
    step, net = pair(config, affine(weights_for(name, shapes_of(config)), bits, group_size))
    ids = IDS % 149
    expected = walk(net.every, net.state(), MIXED, ids)
    assert expected.abs().max() > 0.5 and step.serves(512) and not step.serves(513)
    close(walk(every(step), net.state(), MIXED, ids), expected, 1e-3 * expected.abs().max().item())


@pytest.mark.parametrize("name", ["gemma3", "lfm2"])
def test_bfloat16_stays_near_float32(built, name):
    step, net = pair(CONFIGS[name], weights_for(name), "bfloat16")
    exact = walk(built[name][1].every, built[name][1].state(), MIXED)
    off = (walk(every(step), net.state(), MIXED) - exact).abs().max()
    plain = (walk(net.every, net.state(), MIXED) - exact).abs().max()
    assert off < 1.5 * plain and off < 0.1 * exact.abs().max()


def test_ids_out_of_range_and_long_pieces(built):
    step, net = built["qwen3"]
    for bad in (-1, VOCAB):
        state = net.state()
        with pytest.raises(IndexError, match="vocabulary of 160"):
            step.run(torch.tensor([[3, bad]]), state)
        assert state["length"] == 0
    assert step.serves(1) and not step.serves(300)  # dense: torch's own products are faster


def test_logits_that_are_not_numbers_are_shown(built):
    _, net = built["qwen3"]
    weights = weights_for("qwen3")
    weights["model.norm.weight"].data[5] = np.nan
    step, net = pair(CONFIGS["qwen3"], weights)
    with torch.inference_mode():
        assert step.run(IDS[:, :4], net.state())[0].isnan().all()
