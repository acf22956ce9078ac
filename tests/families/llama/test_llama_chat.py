"""SmolLM2 as users ask it: JSON that is JSON at every temperature, and follow-up turns that read only what is new."""

from __future__ import annotations

import json
import re
import time

import numpy as np
import pytest
from starter_weights import fetched

from izwi_lab.backends.base import BackendPlan
from izwi_lab.backends.torch_backend import TorchBackend
from izwi_lab.families.llama.model import load
from izwi_lab.families.shared.grammar import Grammar, grammar_of
from izwi_lab.families.shared.prompt_cache import PromptCache
from izwi_lab.families.shared.sampling import Sampling

pytestmark = pytest.mark.weights
CITY = {
    "type": "object",
    "properties": {
        "city": {"type": "string", "minLength": 2, "maxLength": 24},
        "country": {"type": "string", "maxLength": 24},
        "capital": {"type": "boolean"},
        "size": {"enum": ["small", "large"]},
    },
    "required": ["city", "country", "capital", "size"],
    "additionalProperties": False,
}
FORMAT = {"type": "json_schema", "json_schema": {"name": "city", "schema": CITY, "strict": True}}


@pytest.fixture(scope="module")
def smollm2():
    files, backend = fetched("SmolLM2-135M-Instruct"), TorchBackend()
    plan = BackendPlan(backend.name, backend.device, backend.dtype, "test")
    return load(files.variant, files.folder, plan, backend, layout=files.layout.value)


@pytest.mark.parametrize("temperature", [0.0, 0.8, 2.0])
@pytest.mark.parametrize("question", ["Describe Paris as JSON.", "Which city do you like?", "Count to ten."])
def test_json_is_json_that_satisfies_its_schema(smollm2, question, temperature):
    sampling = Sampling(temperature=temperature)
    reply = smollm2.generate(question, response_format=FORMAT, sampling=sampling, seed=7, max_tokens=160)
    assert reply.finish_reason == "stop"
    value = json.loads(reply.text)
    assert set(value) == set(CITY["properties"])
    assert 2 <= len(value["city"]) <= 24 and len(value["country"]) <= 24
    assert isinstance(value["capital"], bool) and value["size"] in ("small", "large")


def test_a_pattern_is_matched(smollm2):
    reply = smollm2.generate("When did people land on the moon?", response_format={"type": "regex", "regex": r"\d{4}"})
    assert re.fullmatch(r"\d{4}", reply.text)


def test_masks_cost_little(smollm2):
    processor, vocab = smollm2.processor, smollm2.config.vocab_size
    tokens = processor.tokenizer.encode('{"city": "Paris", "country": "France", "capital": true, "size": "large"}').ids
    Grammar(grammar_of(FORMAT), processor, vocab)  # the tokenizer's table is made once
    seconds = []
    for _ in range(3):
        grammar, started = Grammar(grammar_of(FORMAT), processor, vocab), time.perf_counter()
        for token in tokens:
            assert grammar.mask().view(np.uint32)[token // 32] >> (token % 32) & 1
            grammar.accept(token)
        seconds.append((time.perf_counter() - started) / len(tokens))
    assert min(seconds) < 0.002


def test_a_follow_up_reads_only_what_is_new(smollm2):
    cache, turns = PromptCache(10**9), [{"role": "user", "content": "Name three colours. " + "Think of the sky. " * 20}]
    first = smollm2.generate(turns, cache=cache, max_tokens=24)
    turns += [{"role": "assistant", "content": first.text}, {"role": "user", "content": "And a fourth?"}]
    second = smollm2.generate(turns, cache=cache, max_tokens=16)
    assert second.usage.prompt_tokens - second.usage.cached_tokens < 24 < first.usage.prompt_tokens
    assert second.text == smollm2.generate(turns, max_tokens=16).text
