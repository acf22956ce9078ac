"""What an answer says of itself in every way it can end: text, reason, counts, probabilities. And long prompts."""

from __future__ import annotations

import numpy as np
import pytest
from scripted_chat import PLAIN, chat_model, ids_of, letters, qwen, says

from izwi_lab.cancel import CancelToken
from izwi_lab.errors import InvalidInputError
from izwi_lab.families.shared.sampling import Sampling
from izwi_lab.families.shared.speculative import DraftModel, PromptLookup
from izwi_lab.families.shared.steps import Prompt
from izwi_lab.families.shared.text_model import TextModel
from izwi_lab.results import Usage


def user(text):
    return {"role": "user", "content": text}


def test_the_counts_of_a_whole_answer():
    model = says(chat_model(), "Blue.")
    reply = model.generate("Colour?")
    prompt = len(model.tokenize("Colour?"))
    assert (reply.finish_reason, reply.usage) == ("stop", Usage(prompt, 6, 0, 0))
    assert reply.usage.total_tokens == prompt + 6
    assert reply.tokens == tuple(ids_of(model, "Blue.<|im_end|>"))
    assert (reply.timing.prompt_tokens, reply.timing.tokens) == (prompt, 6)
    deltas = list(model.stream("Colour?"))
    assert [d.text for d in deltas] == ["B", "l", "u", "e", ".", "", ""] and deltas[-1].usage == reply.usage
    assert all(d.usage is None and d.finish_reason is None for d in deltas[:-1])


def test_the_ways_to_end():
    model = says(chat_model(context=40), "Blue. Green. Red. And so on and on and on.")
    prompt = len(model.tokenize("x"))
    assert model.generate("x", max_tokens=3).finish_reason == "length"
    full = model.generate("x")
    assert full.finish_reason == "length" and full.usage.total_tokens == 41  # the last one needs no room
    cut = model.generate("x", stop=["Green"])
    assert (cut.text, cut.finish_reason, cut.usage.completion_tokens) == ("Blue. ", "stop", 11)
    last = model.generate("x", stop=["Gr"], max_tokens=8)
    assert (last.text, last.finish_reason) == ("Blue. ", "stop")  # found with the last token there is
    held = model.generate("x", stop=["Grey"], max_tokens=8)
    assert (held.text, held.finish_reason) == ("Blue. Gr", "length")
    assert cut.usage.prompt_tokens == prompt


def test_a_session_given_by_hand_keeps_to_both_limits():
    for own, asked, expected in ((None, 3, "Blu"), (2, 3, "Bl"), (9, 3, "Blu")):
        model = says(chat_model(), "Blue.")
        session = model.session(max_tokens=own)
        reply = model.generate("x", session=session, max_tokens=asked)
        assert (reply.text, reply.finish_reason, session.max_tokens) == (expected, "length", own)
    with pytest.raises(InvalidInputError, match="seed belongs"):
        model.generate("x", session=session, seed=1)


def test_cancelled_before_and_while_answering():
    model, token = says(chat_model(), "Blue."), CancelToken()
    token.cancel()
    reply = model.generate("x", cancel=token)
    assert (reply.text, reply.finish_reason, reply.tokens) == ("", "cancelled", ())
    assert reply.usage == Usage(len(model.tokenize("x")), 0) and model.read == 0
    token = CancelToken()
    deltas = []
    for delta in model.stream("x", cancel=token):
        deltas.append(delta)
        if delta.index == 1:
            token.cancel()
    assert [d.text for d in deltas] == ["B", "l", ""]
    assert deltas[-1].finish_reason == "cancelled" and deltas[-1].usage.completion_tokens == 2


def test_cancelled_while_reading(monkeypatch):
    model, token = says(chat_model(context=3000), "Blue."), CancelToken()
    run = model._run

    def stops(session, ids):
        token.cancel()
        return run(session, ids)

    monkeypatch.setattr(model, "_run", stops)
    reply = model.generate("word " * 300, cancel=token)
    assert (reply.finish_reason, reply.tokens) == ("cancelled", ())


def test_logprobs_are_those_of_the_model_itself():
    model = chat_model(kind=TextModel)
    odd = Sampling(temperature=2.0, top_k=3, logit_bias={70: -np.inf}, frequency_penalty=1.0)
    reply = model.generate("x", sampling=odd, seed=3, max_tokens=12, logprobs=5)
    session = model.session()
    step = model.prefill(session, model.tokenize("x"))
    content = [t for t in reply.tokens if t not in model.processor.stop_ids]
    assert len(reply.logprobs) == len(content)
    for token, shown in zip(content, reply.logprobs, strict=True):
        logits = step.numpy().astype(np.float64)
        expected = logits - np.log(np.exp(logits - logits.max()).sum()) - logits.max()
        best = np.argsort(-expected)[:5]
        assert shown.token == token and shown.logprob == pytest.approx(expected[token], abs=1e-4)
        assert [t.token for t in shown.top] == best.tolist()
        assert [t.logprob for t in shown.top] == pytest.approx(expected[best], abs=1e-4)
        assert shown.raw == model.processor.token_bytes(token) and shown.text == model.text(token)
        step = model.decode(session, token)
    assert model.generate("x", max_tokens=2).logprobs == ()


def test_probabilities_come_with_their_tokens():
    model = says(chat_model(), "é!")
    deltas = list(model.stream("x", logprobs=1))
    assert [d.text for d in deltas] == ["", "é", "!", "", ""]
    assert [d.logprob.raw if d.logprob else None for d in deltas] == [b"\xc3", b"\xa9", b"!", None, None]


TALK = [
    {"role": "system", "content": "Be brief."},
    *(turn for n in range(8) for turn in (user(f"Question {n}?"), {"role": "assistant", "content": f"Answer {n}."})),
    user("Last?"),
]


def test_a_prompt_that_is_too_long_names_the_numbers():
    model = chat_model(context=200)
    tokens = len(model.tokenize(TALK))
    with pytest.raises(InvalidInputError, match=rf"{tokens} tokens.*context of 200.*77 more.*oldest"):
        model.generate(TALK, max_tokens=77)


@pytest.mark.parametrize("max_tokens", [1, 30, 500])
def test_the_oldest_turns_are_left_out(max_tokens):
    model = says(chat_model(context=200), "Yes.")
    seen = []
    keep = model.prefill
    model.prefill = lambda session, prompt, **more: seen.append(prompt.text) or keep(session, prompt, **more)
    reply = model.generate(TALK, truncation="oldest", max_tokens=max_tokens)
    assert reply.text == ("Y" if max_tokens == 1 else "Yes.")
    (text,) = seen
    assert text.startswith("<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nQuestion")
    assert text.endswith("user\nLast?<|im_end|>\n<|im_start|>assistant\n")
    first = int(text.partition("Question ")[2][0])
    assert first > 0 and [f"Question {n}?" in text for n in range(8)] == [n >= first for n in range(8)]
    room = 200 - min(max_tokens, 50)
    assert reply.usage.prompt_tokens <= room < reply.usage.prompt_tokens + 60, "no more than needed"


def test_what_fits_is_left_alone():
    model = says(chat_model(context=600), "Yes.")
    reply = model.generate(TALK, truncation="oldest", max_tokens=500)
    assert reply.usage.prompt_tokens == len(model.tokenize(TALK))


def test_what_can_not_be_left_out():
    model = chat_model(context=60)
    with pytest.raises(InvalidInputError, match=r"system and last turn alone have \d+ tokens.*context of 60"):
        model.generate([*TALK[:-1], user("word " * 30)], truncation="oldest")
    with pytest.raises(InvalidInputError, match="context of 60"):
        model.generate("word " * 30, truncation="oldest")
    with pytest.raises(InvalidInputError, match="context of 60"):
        model.generate([{"role": "assistant", "content": "word " * 30}], truncation="oldest")


def test_turns_stay_whole():
    model = says(qwen(context=330), "ok")
    call = {"type": "function", "function": {"name": "f", "arguments": "{}"}}
    tooled = [
        user("one"), {"role": "assistant", "content": None, "tool_calls": [call]}, 
        {"role": "tool", "content": "r" * 180},
        {"role": "assistant", "content": "done"}, user("two " * 20),
    ]  # fmt: skip
    assert len(model.tokenize(tooled)) > 330
    reply = model.generate(tooled, truncation="oldest")
    assert reply.usage.prompt_tokens == len(model.tokenize(tooled[-1:]))


def test_a_prompt_of_ids_is_never_cut():
    model = chat_model(context=20)
    with pytest.raises(InvalidInputError, match=r"30 tokens.*20"):
        model.generate(Prompt(np.arange(3, 33, dtype=np.int32)), truncation="oldest")


@pytest.mark.parametrize("stop", [(), ("e",)])
def test_speculation_changes_nothing(stop):
    model = chat_model(kind=TextModel)
    hot = Sampling(temperature=0.4)
    plain = model.generate("a b a b", seed=5, sampling=hot, max_tokens=40, stop=stop, logprobs=1)
    fast = model.generate(
        "a b a b", seed=5, sampling=hot, max_tokens=40, stop=stop, logprobs=1, speculative=PromptLookup()
    )
    assert (fast.tokens, fast.text, fast.finish_reason) == (plain.tokens, plain.text, plain.finish_reason)
    assert fast.usage == plain.usage
    assert [p.token for p in fast.logprobs] == [p.token for p in plain.logprobs]


def test_a_draft_model_is_an_option_too():
    model, draft = chat_model(kind=TextModel), chat_model(kind=TextModel, rows=np.eye(261)[::-1] * 9)
    options = {"max_tokens": 40, "stop": ["zz"], "logprobs": 1}
    plain = model.generate("a b a b", **options)
    for small in (model, draft):
        fast = model.generate("a b a b", speculative=DraftModel(small, 3), **options)
        assert (fast.tokens, fast.text, fast.finish_reason) == (plain.tokens, plain.text, plain.finish_reason)
        assert fast.usage == plain.usage and len(fast.logprobs) == len(plain.logprobs)
    with pytest.raises(InvalidInputError, match="same vocabulary"):
        model.generate("x", speculative=DraftModel(qwen(), 3))


def test_letters_of_control_tokens_are_shown():
    model = chat_model()
    assert says(model, letters(model, "<|im_end|>")).generate("x").text == "<|im_end|>"
    assert PLAIN.count("im_end") == 1
