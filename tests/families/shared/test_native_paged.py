"""The compiled step over caches in blocks of a pool, and over many sequences at once: every row as if it were alone."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from decoder_cases import CONFIGS, PACKAGE, weights_for

from izwi_lab.backends import native
from izwi_lab.backends.torch_backend import TorchBackend
from izwi_lab.errors import InvalidInputError
from izwi_lab.families.shared.nets.decoder import cache
from izwi_lab.families.shared.nets.decoder.cache_torch import pool, reserve

BLOCK = 16
LENGTHS = (1, 5, 17, 64, 65, 130, 200, 300)  # positions of the sequences that run side by side


@pytest.fixture(scope="module", params=[*CONFIGS, "qwen3 int8"])
def net(request):
    assert native.library("decoder", wait=True) is not None, native.status()
    name, _, kind = request.param.partition(" ")
    config = dataclasses.replace(CONFIGS[name], max_positions=400)
    made = TorchBackend().net(PACKAGE, "DecoderLM", config, weights_for(name))
    assert made.step.ready()
    made.kind = kind or None
    return made


def ids_of(count, vocab, seed):
    return torch.from_numpy(np.random.default_rng(seed).integers(0, vocab, (1, count)))


def filled_pool(net, blocks):
    """What lies in the blocks of others must not matter."""
    shared = pool(net.config, torch.empty(0), blocks, BLOCK, int8=net.kind == "int8")
    for a in (a for arrays in shared.values() for a in arrays if a is not None):
        a.fill_(7)
    return shared


def paged(net, shared, blocks):
    """A sequence in some blocks of a pool; its convolutions are its own."""
    own = cache.empty(net.kind)
    reserve(own, net.config, torch.empty(0), 1)
    mine = torch.tensor(blocks, dtype=torch.int32)
    return {**shared, "conv": own["conv"], "length": 0, "block": BLOCK, "blocks": mine}


@torch.inference_mode()
def test_blocks_anywhere_in_a_pool_give_the_bits_of_own_caches(net):
    step, ids = net.step, ids_of(230, net.config.vocab_size, 0)
    shared = filled_pool(net, 40)
    order = np.random.default_rng(1).permutation(40)[:15].tolist()
    own, state = net.state(net.kind), paged(net, shared, order)
    at = 0
    for size in (70, 1, 1, 90, 2, 1, 64, 1):
        expected, _ = step.run(ids[:, at : at + size], own)
        got, _ = step.run(ids[:, at : at + size], state)
        assert torch.equal(got, expected)
        at += size
    with pytest.raises(InvalidInputError, match="no room"):
        step.run(ids_of(11, net.config.vocab_size, 1), state)


@torch.inference_mode()
def test_the_plain_path_finds_its_blocks_too(net, monkeypatch):
    monkeypatch.setattr(net, "step", None)
    ids, shared = ids_of(230, net.config.vocab_size, 0), filled_pool(net, 40)
    for seed in (1, 2):  # the second in what the first left
        order = np.random.default_rng(seed).permutation(40)[:15].tolist()
        own, state = net.state(net.kind), paged(net, shared, order)
        at = 0
        for size in (70, 1, 1, 90, 2, 1, 64, 1):
            expected, _ = net.every(ids[:, at : at + size], own)
            got, _ = net.every(ids[:, at : at + size], state)
            np.testing.assert_allclose(got.numpy(), expected.numpy(), atol=2e-5)
            at += size
    with pytest.raises(InvalidInputError, match="no room"):
        net.every(ids_of(11, net.config.vocab_size, 1), state)


@pytest.mark.parametrize("threads", [1, 2, 3])
@torch.inference_mode()
def test_a_row_gives_the_same_bits_alone_and_beside_others(net, threads, monkeypatch):
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads)
    step, vocab = net.step, net.config.vocab_size
    alone, beside = [], []
    for number, length in enumerate(LENGTHS):
        ids = ids_of(length + 1, vocab, number)
        for states in (alone, beside):
            states.append(net.state(net.kind))
            step.run(ids[:, :length], states[-1])
    nexts = [ids_of(length + 1, vocab, number)[:, length:] for number, length in enumerate(LENGTHS)]
    expected = [step.run(token, state)[0] for token, state in zip(nexts, alone, strict=True)]
    prompt = (ids_of(150, vocab, 99), net.state(net.kind))  # a piece of a prompt in the same step
    together, _ = step.run_together([*zip(nexts, beside, strict=True), prompt])
    for got, one in zip(together, expected, strict=False):
        assert torch.equal(got, one[0])
