"""Steps of several sequences on torch: each gives what it gives alone, compiled to the bit, packed within rounding."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from decoder_cases import CONFIGS, PACKAGE, one_thread, weights_for
from together_cases import BEFORE, BLOCK, BLOCKS, KINDS, SIZES, WANTS, case_of

from izwi_lab.backends import native
from izwi_lab.backends.torch_backend import TorchBackend
from izwi_lab.errors import InvalidInputError
from izwi_lab.families.shared.nets.decoder import pack_torch
from izwi_lab.families.shared.nets.decoder.cache_torch import pool
from izwi_lab.families.shared.taps import tapping

pytestmark = pytest.mark.usefixtures("one_thread")
__all__ = ["one_thread"]


@pytest.fixture(scope="module", params=CONFIGS)
def net(request):
    assert native.library("decoder", wait=True) is not None, native.status()
    config = dataclasses.replace(CONFIGS[request.param], max_positions=400)
    made = TorchBackend().net(PACKAGE, "DecoderLM", config, weights_for(request.param))
    assert made.step.ready()
    return made


@pytest.fixture(params=["compiled", "packed", "gathered"])
def path(request, net, monkeypatch):
    """Through the compiled step; packed, each decode by itself as on the processor; or all at once as on a device."""
    if request.param != "compiled":
        monkeypatch.setattr(net, "step", None)
    if request.param == "gathered":
        monkeypatch.setattr(pack_torch, "gathers", lambda device: True)
    return request.param


def states_of(net, case):
    """A state for each sequence of a case, with what is read before the step."""
    shared = pool(net.config, torch.empty(0), BLOCKS, BLOCK, int8=case.kv_dtype == "int8")
    for a in (a for arrays in shared.values() for a in arrays if a is not None):
        a.fill_(7)  # what lies in the blocks of others must not matter
    states = []
    for ids, blocks, before in zip(case.ids, case.blocks, BEFORE, strict=True):
        state = net.state(case.kv_dtype)
        if blocks is not None:
            state |= {**shared, "block": BLOCK, "blocks": torch.from_numpy(blocks)}
        if before:
            net(torch.from_numpy(ids[None, :before]), state)
        states.append(state)
    return states


def pieces_of(case, states, turn):
    """The pieces of step `turn`."""
    starts = [before + turn * size for before, size in zip(BEFORE, SIZES, strict=True)]
    cut = [ids[at : at + size] for ids, at, size in zip(case.ids, starts, SIZES, strict=True)]
    return [(torch.from_numpy(ids), state, wants) for ids, state, wants in zip(cut, states, WANTS, strict=True)]


@pytest.mark.parametrize("kind", KINDS)
@torch.inference_mode()
def test_each_gives_what_it_gives_alone(net, path, kind):
    case = case_of(kind, net.config.vocab_size)
    states, alone = states_of(net, case), states_of(net, case)
    for turn in range(2):
        logits, hidden = net.together(pieces_of(case, states, turn))
        single = [(net(ids[None], state), wants) for ids, state, wants in pieces_of(case, alone, turn)]
        expected = [done for done, wants in single if wants]
        assert len(logits) == len(hidden) == len(expected) == sum(WANTS)
        for number, (one, last) in enumerate(expected):
            if path == "compiled" and SIZES[[i for i, w in enumerate(WANTS) if w][number]] == 1:
                assert torch.equal(logits[number], one[0]) and torch.equal(hidden[number], last[0])
            np.testing.assert_allclose(logits[number].numpy(), one[0].numpy(), atol=3e-5)
            np.testing.assert_allclose(hidden[number].numpy(), last[0].numpy(), atol=3e-5)
    assert [s["length"] for s in states] == [s["length"] for s in alone]


@torch.inference_mode()
def test_decodes_of_which_some_are_wanted(net, path):
    case = case_of("paged", net.config.vocab_size)
    states, alone = states_of(net, case), states_of(net, case)
    pieces, single = ([(ids[:1], *rest) for ids, *rest in pieces_of(case, s, 0)] for s in (states, alone))
    logits, hidden = net.together(pieces)
    expected = [done for done, wants in [(net(ids[None], state), wants) for ids, state, wants in single] if wants]
    close = dict(rtol=0, atol=0 if path == "compiled" else 3e-5)
    torch.testing.assert_close(logits, torch.cat([one for one, _ in expected]), **close)
    torch.testing.assert_close(hidden, torch.cat([last for _, last in expected]), **close)


@torch.inference_mode()
def test_nobody_wants(net, path):
    case = case_of("paged", net.config.vocab_size)
    states, alone = states_of(net, case), states_of(net, case)
    pieces = [(ids, state, False) for ids, state, _ in pieces_of(case, states, 0)]
    logits, hidden = net.together(pieces)
    assert logits.shape == (0, net.config.vocab_size) and hidden.shape == (0, net.config.hidden_size)
    net.together(pieces_of(case, alone, 0))
    got, expected = net.together(pieces_of(case, states, 1)), net.together(pieces_of(case, alone, 1))
    assert torch.equal(got[0], expected[0])
    assert net.together([])[0].shape == (0, net.config.vocab_size)


@torch.inference_mode()
def test_what_is_wrong_with_one_changes_nothing(net, path):
    case = case_of("mixed", net.config.vocab_size)
    states, alone = states_of(net, case), states_of(net, case)
    lengths, last = [s["length"] for s in states], len(states) - 1
    for wrong, error in ((-1, IndexError), (net.config.vocab_size, IndexError), ([], InvalidInputError)):
        pieces = pieces_of(case, states, 0)
        pieces[last] = (torch.tensor(wrong, dtype=torch.int64).reshape(-1), *pieces[last][1:])
        with pytest.raises(error):
            net.together(pieces)
    pieces, blocks = pieces_of(case, states, 0), states[2]["blocks"]
    states[2]["blocks"] = blocks[:8]  # of 16: no room for position 130
    with pytest.raises(InvalidInputError, match="no room"):
        net.together(pieces)
    states[2]["blocks"] = blocks
    assert [s["length"] for s in states] == lengths
    got, expected = net.together(pieces), net.together(pieces_of(case, alone, 0))
    assert torch.equal(got[0], expected[0])


@torch.inference_mode()
def test_taps_see_one_sequence_after_the_other(net):
    case = case_of("paged", net.config.vocab_size)
    states, alone = states_of(net, case), states_of(net, case)
    with tapping("layers.1", numpy=lambda a: a.numpy(), array=lambda a, _: a) as seen:
        logits, _ = net.together(pieces_of(case, states, 0))
    assert [a.shape[1] for a in seen.history["layers.1"]] == list(SIZES)
    expected, _ = net.together(pieces_of(case, alone, 0))
    np.testing.assert_allclose(logits.numpy(), expected.numpy(), atol=3e-5)


@pytest.mark.parametrize("kind", ["plain", "paged"])
@torch.inference_mode()
def test_given_rows_of_several_sequences(net, kind):
    case, step, table = case_of(kind, net.config.vocab_size), net.step, net.model.embed_tokens
    states, alone, packed = (states_of(net, case) for _ in range(3))
    pieces = [(table(ids), ids[-1:].tolist(), state) for ids, state, _ in pieces_of(case, states, 0)]
    pieces[2] = (None, pieces[2][1], pieces[2][2])
    logits, hidden = step.run_rows_together(pieces)
    for number, ((rows, tokens, _), state) in enumerate(zip(pieces, alone, strict=True)):
        one, last = step.run_rows(rows, tokens, state)
        assert torch.equal(logits[number], one[0]) and torch.equal(hidden[number], last[0])
        assert states[number]["length"] == state["length"]
    tails = [net.embed(torch.tensor([tokens]))[0] for _, tokens, _ in pieces]
    xs = [tail if rows is None else torch.cat((rows, tail)) for (rows, _, _), tail in zip(pieces, tails, strict=True)]
    for x, got, last in zip(xs, net.model.hidden_together(xs, packed), hidden, strict=True):
        assert got.shape == x.shape
        np.testing.assert_allclose(got[-1].numpy(), last.numpy(), atol=3e-5)
    with pytest.raises(InvalidInputError, match="rows of"):
        step.run_rows_together([(rows[:, :-1], (), state) for rows, _, state in pieces[:1]])
