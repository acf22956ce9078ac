"""Gemma-3-270m from the starter pack (238 MB): ids and greedy tokens equal to transformers on the same file."""

from __future__ import annotations

import json
import time
from pathlib import Path

import numpy as np
import pytest
from starter_weights import fetched

from izwi_lab.artifacts.gguf_tokenizer import build_tokenizer
from izwi_lab.backends import native
from izwi_lab.backends.base import BackendPlan
from izwi_lab.backends.mlx_backend import MLXBackend
from izwi_lab.backends.torch_backend import TorchBackend
from izwi_lab.errors import InvalidInputError
from izwi_lab.families.gemma3.model import load
from izwi_lab.families.shared.steps import Prompt

pytestmark = [pytest.mark.weights, pytest.mark.slow]
GOLDEN = json.loads(Path(__file__).with_name("golden_gemma3_270m.json").read_text())


@pytest.fixture(scope="module")
def local():
    return fetched("Gemma-3-270m", source="starter")


def opened(local, backend):
    plan = BackendPlan(backend.name, backend.device, backend.dtype, "test")
    return load(local.variant, local.folder, plan, backend, layout=str(local.layout))


@pytest.fixture(scope="module")
def gemma(local):
    assert native.library("decoder", wait=True) is not None, native.status()
    return opened(local, TorchBackend())


@pytest.mark.parametrize("case", GOLDEN["texts"] + GOLDEN["left_to_right"], ids=lambda c: repr(c["text"][:20]))
def test_ids_equal_the_references(gemma, case):
    ids = gemma.text_processor().tokenizer.encode(case["text"]).ids
    assert ids == case["ids"]
    assert ids[0] == 2, "a text begins with <bos>"


@pytest.mark.parametrize("case", GOLDEN["said"], ids=lambda c: c["prompt"][:20])
def test_greedy_tokens_equal_transformers(gemma, case):
    prompt = gemma.tokenize(case["prompt"])
    assert prompt.ids.tolist() == case["ids"]
    reply = gemma.generate(prompt, max_tokens=64)
    assert list(reply.tokens) == case["tokens"]
    said = gemma.text_processor().tokenizer.decode(case["tokens"], skip_special_tokens=True)
    assert reply.text == said == gemma.detokenize(case["tokens"])


def test_mlx_gives_the_same_tokens(local):
    model = opened(local, MLXBackend("cpu"))
    session = model.session()
    step = model.prefill(session, Prompt(np.asarray(GOLDEN["said"][0]["ids"], np.int32)))
    for expected in GOLDEN["said"][0]["tokens"][:16]:
        assert model.sample(session, step) == expected
        step = model.decode(session, expected)


def test_a_base_model_takes_text_and_no_messages(gemma):
    assert gemma.text_processor().template is None
    assert gemma.text_processor().stop_ids == {1, 106}
    with pytest.raises(InvalidInputError, match="Give plain text instead of messages"):
        gemma.tokenize([{"role": "user", "content": "Hello."}])


def test_weights_stay_quantised_in_memory(gemma):
    assert gemma.nbytes < 1.05 * 253_113_024


def test_the_tokenizer_is_built_in_seconds_and_kept(gemma, local):
    from izwi_lab.artifacts.gguf_reader import open_folder

    checkpoint = open_folder(local.folder)
    started_s = time.process_time()
    build_tokenizer(checkpoint.config)
    assert time.process_time() - started_s < 6  # 2 s on an idle core
    checkpoint.close()
    assert list(local.folder.glob("*.tokenizer-*.json"))
