"""Values of the wrong kind, given to the step API: each error names what was expected and what came."""

from __future__ import annotations

import numpy as np
import pytest
from scripted_chat import chat_model

import izwi_lab as izwi
from izwi_lab.errors import InvalidInputError
from izwi_lab.families.shared.text_model import TextModel


@pytest.fixture(scope="module")
def model():
    return chat_model(kind=TextModel)


@pytest.mark.parametrize(
    ("options", "message"),
    [({name: value}, f"{name} must be a number, got {value!r}")
     for name in ("temperature", "top_k", "top_p", "min_p", "repetition_penalty", "presence_penalty")
     for value in ("a", True, None)]
    + [({"logit_bias": [1]}, r"mapping of token ids to numbers, got \[1\]"),
       ({"logit_bias": {"a": 1.0}}, "names a token by 'a', expected its id"),
       ({"logit_bias": {3: "b"}}, "of token 3 must be a number, got 'b'")],
)  # fmt: skip
def test_sampling(options, message):
    with pytest.raises(InvalidInputError, match=message):
        izwi.Sampling(**options)
    izwi.Sampling(temperature=np.float32(0.5), top_k=np.int64(3), logit_bias={np.int32(1): np.float64(2)})


@pytest.mark.parametrize("wrong", [[1.5], [[1]], None, "ab", 5, [2**40], np.array([1.0]), [True], [[1], [2, 3]]])
def test_prompt_ids(wrong):
    with pytest.raises(InvalidInputError, match="Prompt: ids"):
        izwi.Prompt(wrong)


def test_a_list_of_ids_is_a_prompt(model):
    step = model.prefill(model.session(), izwi.Prompt([5, 6]))
    np.testing.assert_array_equal(step.numpy(), model.prefill(model.session(), izwi.Prompt(np.array([5, 6]))).numpy())
    with pytest.raises(InvalidInputError, match="empty"):
        model.prefill(model.session(), izwi.Prompt([]))


def begun(model):
    session = model.session()
    return session, model.prefill(session, model.tokenize("hi"))


WRONG = {
    "prefill text": (lambda m, s, p: m.prefill(s, "hi"), "A Prompt was expected, got 'hi'"),
    "prefill nothing": (lambda m, s, p: m.prefill(s, None), "A Prompt was expected, got None"),
    "prefill without session": (lambda m, s, p: m.prefill(None, m.tokenize("hi")), "A Session was expected, got None"),
    "score a number": (lambda m, s, p: m.score(5), "A Prompt was expected, got 5"),
    "score nothing": (lambda m, s, p: m.score(None), "A Prompt was expected, got None"),
    "generate a number": (lambda m, s, p: m.generate(5), "must be a list, got 5"),
    "generate nothing": (lambda m, s, p: m.generate(None), "must be a list, got None"),
    "generate in no session": (lambda m, s, p: m.generate("x", session=5), "A Session was expected, got 5"),
    "generate's cancel": (lambda m, s, p: m.generate("x", cancel=True), "CancelToken or None, got True"),
    "stream's cancel": (lambda m, s, p: list(m.stream("x", cancel="now")), "CancelToken or None, got 'now'"),
    "prefill's cancel": (lambda m, s, p: m.prefill(s, m.tokenize("x"), cancel=1), "CancelToken or None, got 1"),
    "score's cancel": (lambda m, s, p: m.score("xy", cancel=1), "CancelToken or None, got 1"),
    "decode": (lambda m, s, p: m.decode(s, "a"), "token id was expected, got 'a'"),
    "sample without step": (lambda m, s, p: m.sample(s, None), "A Step was expected, got None"),
    "sample's sampling": (lambda m, s, p: m.sample(s, p, 0.7), "Sampling or None, got 0.7"),
    "max_tokens 0": (lambda m, s, p: m.session(max_tokens=0), "max_tokens must be a whole number from 1"),
    "max_tokens a": (lambda m, s, p: m.session(max_tokens="a"), "max_tokens .* got 'a'"),
    "seed": (lambda m, s, p: m.session(seed=1.5), "seed .* got 1.5"),
    "load": (lambda m, s, p: s.load(None), "kept in a file, got None"),
    "save": (lambda m, s, p: s.save(7), "kept in a file, got 7"),
    "trim": (lambda m, s, p: s.trim("a"), "got 'a'"),
    "draft": (lambda m, s, p: izwi.DraftModel("small"), "takes a text model, got 'small'"),
}


@pytest.mark.parametrize("name", WRONG)
def test_verbs(model, name):
    call, message = WRONG[name]
    session, step = begun(model)
    with pytest.raises(InvalidInputError, match=message):
        call(model, session, step)
    assert session.position == len(session.prompt_ids) and not session.tokens


def test_a_session_is_kept_in_a_file(model, tmp_path):
    session, _ = begun(model)
    for verb in (session.save, session.load):
        with pytest.raises(InvalidInputError, match=r"is a folder.*session\.safetensors"):
            verb(tmp_path)
    assert not list(tmp_path.iterdir())
