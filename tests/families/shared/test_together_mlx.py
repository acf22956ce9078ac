"""Steps of several sequences on MLX: each gives what it gives alone and on torch, within rounding."""

from __future__ import annotations

import dataclasses

import mlx.core as mx
import numpy as np
import pytest
import torch
from decoder_cases import CONFIGS, PACKAGE, one_thread, weights_for
from together_cases import BEFORE, BLOCK, BLOCKS, KINDS, SIZES, WANTS, case_of

from izwi_lab.backends.mlx_backend import MLXBackend
from izwi_lab.backends.torch_backend import TorchBackend
from izwi_lab.errors import InvalidInputError
from izwi_lab.families.shared.nets.decoder import pack_mlx
from izwi_lab.families.shared.nets.decoder.cache_mlx import pool
from izwi_lab.families.shared.taps import tapping

pytestmark = pytest.mark.usefixtures("one_thread")
__all__ = ["one_thread"]


@pytest.fixture(scope="module", params=CONFIGS)
def nets(request):
    """The same model on MLX and on torch."""
    config = dataclasses.replace(CONFIGS[request.param], max_positions=400)
    weights = weights_for(request.param)
    backends = MLXBackend("cpu"), TorchBackend()
    return tuple(backend.net(PACKAGE, "DecoderLM", config, weights) for backend in backends)


@pytest.fixture
def net(nets):
    return nets[0]


def states_of(net, case):
    """A state for each sequence of a case, with what is read before the step."""
    shared = pool(net.config, mx.zeros(1), BLOCKS, BLOCK, int8=case.kv_dtype == "int8")
    for a in (a for arrays in shared.values() for a in arrays if a is not None):
        a[:] = 7  # what lies in the blocks of others must not matter
    states = []
    for ids, blocks, before in zip(case.ids, case.blocks, BEFORE, strict=True):
        state = net.state(case.kv_dtype)
        if blocks is not None:
            state |= {**shared, "block": BLOCK, "blocks": blocks}
        if before:
            net(mx.array(ids[None, :before]), state)
        states.append(state)
    return states


def pieces_of(case, states, turn, array=mx.array):
    """The pieces of step `turn`."""
    starts = [before + turn * size for before, size in zip(BEFORE, SIZES, strict=True)]
    cut = [ids[at : at + size] for ids, at, size in zip(case.ids, starts, SIZES, strict=True)]
    return [(array(ids), state, wants) for ids, state, wants in zip(cut, states, WANTS, strict=True)]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("gathered", [True, False])
def test_each_gives_what_it_gives_alone(net, kind, gathered, monkeypatch):
    monkeypatch.setattr(pack_mlx, "gathers", lambda: gathered)
    case = case_of(kind, net.config.vocab_size)
    states, alone = states_of(net, case), states_of(net, case)
    for turn in range(2):
        logits, hidden = net.together(pieces_of(case, states, turn))
        single = [(net(ids[None], state), wants) for ids, state, wants in pieces_of(case, alone, turn)]
        expected = [mx.concatenate(part) for part in zip(*(done for done, wants in single if wants), strict=True)]
        np.testing.assert_allclose(np.array(logits), np.array(expected[0]), atol=3e-5)
        np.testing.assert_allclose(np.array(hidden), np.array(expected[1]), atol=3e-5)
    assert [s["length"] for s in states] == [s["length"] for s in alone]


def test_as_on_torch(nets):
    case = case_of("plain", nets[0].config.vocab_size)
    made = [nets[0].state() for _ in SIZES], [nets[1].state() for _ in SIZES]
    for at in (0, 1):
        for states, net, array in zip(made, nets, (mx.array, torch.from_numpy), strict=True):
            cut = [ids[at * size : (at + 1) * size + at] for ids, size in zip(case.ids, SIZES, strict=True)]
            read = [(array(ids), state, True) for ids, state in zip(cut, states, strict=True)]
            with torch.inference_mode():
                logits, hidden = net.together(read)
            if net is nets[0]:
                expected = np.array(logits), np.array(hidden)
        np.testing.assert_allclose(logits.numpy(), expected[0], atol=2e-4)
        np.testing.assert_allclose(hidden.numpy(), expected[1], atol=2e-4)


def test_nobody_wants_and_taps(net):
    case = case_of("paged", net.config.vocab_size)
    states, alone = states_of(net, case), states_of(net, case)
    logits, hidden = net.together([(ids, state, False) for ids, state, _ in pieces_of(case, states, 0)])
    assert logits.shape == (0, net.config.vocab_size) and hidden.shape == (0, net.config.hidden_size)
    with tapping("layers.1", numpy=np.array, array=lambda a, _: mx.array(a)) as seen:
        net.together(pieces_of(case, alone, 0))
    assert [a.shape[1] for a in seen.history["layers.1"]] == list(SIZES)
    got, expected = net.together(pieces_of(case, states, 1)), net.together(pieces_of(case, alone, 1))
    np.testing.assert_allclose(np.array(got[0]), np.array(expected[0]), atol=3e-5)
    assert net.together([])[0].shape == (0, net.config.vocab_size)


def test_what_is_wrong_with_one_changes_nothing(net):
    case = case_of("mixed", net.config.vocab_size)
    states, alone = states_of(net, case), states_of(net, case)
    pieces, blocks = pieces_of(case, states, 0), states[2]["blocks"]
    with pytest.raises(InvalidInputError, match="without a position"):
        net.together([*pieces[:-1], (mx.zeros(0, mx.int32), *pieces[-1][1:])])
    states[2]["blocks"] = blocks[:8]  # of 16: no room for position 130
    with pytest.raises(InvalidInputError, match="no room"):
        net.together(pieces)
    states[2]["blocks"] = blocks
    got, expected = net.together(pieces), net.together(pieces_of(case, alone, 0))
    assert mx.array_equal(got[0], expected[0])
