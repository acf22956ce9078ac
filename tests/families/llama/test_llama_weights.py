"""SmolLM2 from the starter pack: greedy tokens equal to transformers on the same file, on both backends."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from starter_weights import fetched
from tiny_llama import VARIANT, open_model

from izwi_lab.backends import native
from izwi_lab.backends.mlx_backend import MLXBackend
from izwi_lab.families.shared.steps import Prompt

pytestmark = pytest.mark.weights
GOLDEN = json.loads(Path(__file__).with_name("golden_smollm2.json").read_text())


@pytest.fixture(scope="module")
def local():
    return fetched(VARIANT.id, source="starter")


@pytest.fixture(scope="module")
def smollm(local):
    assert native.library("decoder", wait=True) is not None, native.status()
    return open_model(local.folder, str(local.layout), variant=VARIANT)


@pytest.mark.parametrize("case", GOLDEN, ids=lambda c: c["prompt"][:20])
def test_greedy_tokens_equal_transformers(smollm, case):
    prompt = smollm.tokenize(case["prompt"])
    assert prompt.ids.tolist() == case["ids"]
    reply = smollm.generate(case["prompt"], max_tokens=64)
    assert list(reply.tokens) == case["tokens"]


def test_plain_torch_gives_the_same_tokens(smollm, monkeypatch):
    with smollm.tap("norm"):  # open taps take the plain step
        reply = smollm.generate(GOLDEN[1]["prompt"], max_tokens=24)
    assert list(reply.tokens) == GOLDEN[1]["tokens"][:24]


def test_mlx_gives_the_same_tokens(local):
    model = open_model(local.folder, str(local.layout), MLXBackend("cpu"), variant=VARIANT)
    session = model.session()
    step = model.prefill(session, Prompt(smoll_ids()))
    for expected in GOLDEN[0]["tokens"]:
        token = model.sample(session, step)
        assert token == expected
        step = model.decode(session, token)


def smoll_ids():
    import numpy as np

    return np.asarray(GOLDEN[0]["ids"], np.int32)


def test_weights_stay_quantised_in_memory(smollm):
    assert smollm.nbytes < 1.01 * 98_362_432


def test_answers_the_capital(smollm):
    assert "Paris" in smollm.generate("What is the capital of France?", max_tokens=32).text


@pytest.mark.slow
def test_golden_tokens_are_what_transformers_says_today(local):
    from llama_golden import golden

    assert golden(next(local.folder.glob("*.gguf"))) == GOLDEN
