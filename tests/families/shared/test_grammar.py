"""Constrained answers: whatever the logits say, an answer that ended by itself satisfies its grammar."""

from __future__ import annotations

import json
import re
import sys
import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scripted_chat import QWEN, QWEN_MARKS, chat_model, ids_of, qwen, says

from izwi_lab.errors import InvalidInputError, MissingExtraError
from izwi_lab.families.shared.grammar import Grammar, grammar_of
from izwi_lab.families.shared.sampling import Sampling
from izwi_lab.families.shared.text_model import TextModel

HOT = Sampling(temperature=1.4)
PERSON = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "minLength": 1, "maxLength": 6},
        "age": {"type": "integer", "minimum": 0, "maximum": 150},
        "tags": {"type": "array", "items": {"enum": ["a", "b"]}, "maxItems": 2},
        "home": {"anyOf": [{"type": "null"}, {"type": "boolean"}]},
    },
    "required": ["name", "age", "tags"],
    "additionalProperties": False,
}


def schema(value):
    return {"type": "json_schema", "json_schema": {"name": "answer", "schema": value, "strict": True}}


def regex(pattern):
    return {"type": "regex", "regex": pattern}


def is_person(value):
    assert set(value) <= set(PERSON["properties"]) and {"name", "age", "tags"} <= set(value)
    assert isinstance(value["name"], str) and 1 <= len(value["name"]) <= 6
    assert type(value["age"]) is int and 0 <= value["age"] <= 150
    assert len(value["tags"]) <= 2 and set(value["tags"]) <= {"a", "b"}
    assert value.get("home") in (None, True, False)


@pytest.fixture(scope="module")
def wild():
    """Models whose logits are noise: without a grammar nothing they say is valid."""
    return {name: make(kind=TextModel) for name, make in (("plain", chat_model), ("qwen", qwen))}


PATTERNS = [
    r"[\d/]{1,3}",
    r"\d{4}-\d{2}-\d{2}",
    r"(yes|no|maybe)",
    r"[a-z]{0,5}",
    r" ?[A-Z][a-z]+\.",
    r"(ab){2,3}c?",
    r"\n\nx{2}\s",
    "é{1,3}ß",
]


@settings(max_examples=40, deadline=None)
@given(st.sampled_from(PATTERNS), st.integers(0, 10**6), st.sampled_from([0.0, 0.7, 1.4, 5.0]))
def test_whatever_the_logits_a_finished_answer_matches_its_pattern(wild, pattern, seed, temperature):
    for model in wild.values():
        sampling = Sampling(temperature=temperature)
        reply = model.generate("x", response_format=regex(pattern), sampling=sampling, seed=seed, max_tokens=60)
        if reply.finish_reason == "stop":
            assert re.fullmatch(pattern, reply.text), reply.text
        else:
            assert reply.finish_reason == "length" and len(reply.tokens) == 60


@pytest.mark.parametrize("name", ["plain", "qwen"])
def test_whatever_the_logits_a_finished_answer_satisfies_its_schema(wild, name):
    finished = 0
    for seed in range(30):
        reply = wild[name].generate("x", response_format=schema(PERSON), sampling=HOT, seed=seed, max_tokens=250)
        if reply.finish_reason == "stop":
            is_person(json.loads(reply.text))
            finished += 1
        reply = wild[name].generate(
            "x", response_format={"type": "json_object"}, sampling=HOT, seed=seed, max_tokens=90
        )
        if reply.finish_reason == "stop":
            assert isinstance(json.loads(reply.text), dict)
    assert finished > 15


def allowed(model, grammar):
    bits = np.unpackbits(grammar.mask().view(np.uint8), bitorder="little")
    return set(np.flatnonzero(bits[: model.config.vocab_size]).tolist())


def test_the_end_token_is_allowed_exactly_when_the_text_is_complete():
    model = qwen()
    ends = set(ids_of(model, "<|im_end|><|endoftext|>"))
    grammar = Grammar(grammar_of(regex("a{2,3}")), model.processor, model.config.vocab_size)
    a = ids_of(model, "a")[0]
    for count in range(3):
        assert allowed(model, grammar) == {a} | (ends if count == 2 else set())
        assert not grammar.finished
        grammar.accept(a)
    assert grammar.finished and allowed(model, grammar) == ends
    with pytest.raises(InvalidInputError, match="does not follow"):
        grammar.accept(a)


def test_control_tokens_are_never_text():
    model = qwen()
    grammar = Grammar(grammar_of(regex(r"(?s:.)+")), model.processor, model.config.vocab_size)
    assert not allowed(model, grammar) & set(model.processor.token_bytes.control)
    assert len(allowed(model, grammar)) > 150


NAMED_CONTROL = {
    "const": (schema({"const": "<|im_end|>"}), '"<|im_end|>"'),
    "property": (
        schema({"type": "object", "properties": {"<|im_end|>": {"const": 1}}, "required": ["<|im_end|>"],
                "additionalProperties": False}),
        '{"<|im_end|>":1}',
    ),
    "regex": (regex(r"ab<\|im_start\|>x"), "ab<|im_start|>x"),
    "mark": (regex("a<think>b"), "a<think>b"),
}  # fmt: skip


@pytest.mark.parametrize("name", NAMED_CONTROL)
def test_control_tokens_that_a_grammar_spells_are_letters(wild, name):
    held, text = NAMED_CONTROL[name]
    for model in wild.values():
        reply = model.generate("x", response_format=held, sampling=HOT, seed=2, max_tokens=200, thinking=False)
        said = reply.text if held["type"] == "regex" else json.dumps(json.loads(reply.text), separators=(",", ":"))
        assert (said, reply.finish_reason) == (text, "stop")
        assert not set(reply.tokens[:-1]) & set(model.processor.token_bytes.control)


def test_the_grammar_begins_after_the_thought():
    model = says(qwen(), "<think>\nno number\n</think>42")
    reply = model.generate("x", response_format=regex(r"\d\d"))
    assert (reply.text, reply.reasoning, reply.finish_reason) == ("42", "no number", "stop")
    assert says(qwen(), "42").generate("x", response_format=regex(r"\d\d")).text == "42"  # it need not think
    model = says(qwen(), "<think>", end="x")
    with pytest.raises(AssertionError, match="is not allowed"):
        model.generate("x", response_format=regex(r"\d\d"), thinking=False)
    model = says(qwen(), "<think>\nno", "<|im_end|>")
    with pytest.raises(AssertionError, match="is not allowed"):  # a thought must end before the answer can
        model.generate("x", response_format=regex(r"\d\d"))


def test_a_thought_that_the_prompt_opened():
    model = says(qwen(), "hm</think>\n7")
    opened = model.processor.encoder.text("<|im_start|>assistant\n<think>")
    reply = model.generate(opened, response_format=regex(r"\s\d"))
    assert (reply.text, reply.reasoning) == ("\n7", "hm")  # what the grammar asked for is not touched
    spelt = chat_model(QWEN)
    with pytest.raises(InvalidInputError, match="no grammar can begin there"):
        spelt.generate(spelt.processor.encoder.text("<think>"), response_format=regex("a"))


def test_cut_off_is_length():
    reply = qwen(kind=TextModel).generate("x", response_format=regex("a{30}"), thinking=False, max_tokens=5)
    assert (reply.text, reply.finish_reason) == ("aaaaa", "length")


def test_the_answer_ends_with_the_grammar():
    model = says(qwen(), "ab", end="")
    reply = model.generate("x", response_format=regex("ab"))
    assert (reply.text, reply.finish_reason, len(reply.tokens)) == ("ab", "stop", 2)


ENDLESS = {"enum": [f"value {n}" for n in range(60_000)]}
UNUSABLE = {
    "unclosed": (regex("(a"), "cannot be used"),
    "lookahead": (regex("(?=a)b"), "cannot be used"),
    "nothing matches": (regex(r"[^\s\S]"), "Nothing satisfies|cannot be used"),
    "empty range": (schema({"type": "integer", "minimum": 5, "maximum": 3}), "cannot be used.*minimum"),
    "two types": (schema({"allOf": [{"type": "string"}, {"type": "number"}]}), "Unsatisfiable"),
    "a required false": (schema({"type": "object", "properties": {"a": False}, "required": ["a"]}), "Unsatisfiable"),
    "false": (schema(False), "is False, which nothing"),
    "unknown type": (schema({"type": "objekt"}), "cannot be used"),
    "not kept by the library": (schema({"not": {"type": "string"}}), 'cannot be used.*says "not".*Leave it out'),
    "too big": (regex("a{1000000}"), "pattern is too big"),
    "too big later": (schema({"type": "string", "pattern": "^ba{1000000}$"}), "pattern is too big"),
    "too long": (regex("x" * 300_000), "^The pattern has 300045 characters, more than 262144. Give a smaller one.$"),
    "no such reference": (schema({"$ref": "#/$defs/x"}), "cannot be used"),
    "somewhere else": (schema({"$ref": "http://localhost/x.json"}), "cannot be used"),
    "too large": (schema(ENDLESS), r"^The schema has \d+ characters, more than \d+\. Give a smaller one\.$"),
    "too deep": (schema(json.loads('{"items":' * 300 + "{}" + "}" * 300)), "cannot be used|not JSON"),
    "no value of JSON": (schema({"const": {1, 2}}), "not JSON"),
}


@pytest.mark.parametrize("name", UNUSABLE)
def test_grammars_that_cannot_be_used_say_so_at_once(name):
    held, message = UNUSABLE[name]
    model, started = chat_model(), time.perf_counter()
    with pytest.raises(InvalidInputError, match=message):
        model.generate("x", response_format=held)
    assert time.perf_counter() - started < 8
    assert model.read == 0


@pytest.mark.parametrize(
    "pattern", ["(a+)+b", "(a|aa)+$", "(.*a){12}.{40}", "(x|xx|xxx){1,5000}", "(a{1,60}){1,60}{1,60}"]
)
def test_evil_patterns_cost_no_more_than_others(pattern):
    model, started = chat_model(kind=TextModel), time.perf_counter()
    try:
        model.generate("x", response_format=regex(pattern), max_tokens=60, sampling=HOT, seed=1)
    except InvalidInputError as error:
        assert "rammar" in str(error)
    assert time.perf_counter() - started < 10


@pytest.mark.parametrize(
    ("held", "message"),
    [({"type": "xml"}, "'xml'"), ({}, "None"), ({"type": "json_schema"}, "must hold a schema"),
     ({"type": "json_schema", "json_schema": {"schema": "x"}}, "must hold a schema"),
     ({"type": "json_schema", "json_schema": {"schema": {}, "extra": 1}}, "extra"),
     ({"type": "regex"}, "must be a pattern"), ({"type": "regex", "regex": ""}, "must be a pattern"),
     ("json", "mapping")],
)  # fmt: skip
def test_malformed_formats(held, message):
    with pytest.raises(InvalidInputError, match=message):
        chat_model().generate("x", response_format=held)


def test_text_is_no_constraint():
    assert says(chat_model(), "free").generate("x", response_format={"type": "text"}, stop=["ee"]).text == "fr"


def test_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "llguidance", None)
    with pytest.raises(MissingExtraError, match=r"izwi-lab\[grammar\]"):
        chat_model().generate("x", response_format={"type": "json_object"})


def test_a_vocabulary_larger_than_the_tokenizer():
    rows = np.zeros((400, 400), np.float32)
    rows[:, 300:] = 50  # padding rows, which no tokenizer knows, are the likeliest
    model = chat_model(QWEN, marks=QWEN_MARKS, kind=TextModel, rows=rows)  # more rows than tokens
    reply = model.generate("x", response_format=regex("[ab]{3}"), sampling=HOT, seed=2, thinking=False)
    assert re.fullmatch("[ab]{3}", reply.text)
