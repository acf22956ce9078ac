"""Thoughts are told from the answer, whichever way the tags come, and counted."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scripted_chat import LFM2, PLAIN, QWEN, QWEN_MARKS, SPECIAL, chat_model, ids_of, letters, qwen, says

from izwi_lab.errors import InvalidInputError
from izwi_lab.families.shared.sections import Part, Sections, Tags
from izwi_lab.families.shared.steps import Prompt

THINK, CALL = Tags("<think>", "</think>"), Tags("<tool_call>", "</tool_call>")


def together(deltas):
    return "".join(d.text for d in deltas), "".join(d.reasoning for d in deltas)


def test_thought_and_answer_by_token():
    model = says(qwen(), "<think>\nLet me see.\nYes.\n</think>\n\nBlue.")
    deltas = list(model.stream("Colour?"))
    assert together(deltas) == ("Blue.", "Let me see.\nYes.")
    reply = model.generate("Colour?")
    assert (reply.text, reply.reasoning, reply.finish_reason) == ("Blue.", "Let me see.\nYes.", "stop")
    assert reply.usage.reasoning_tokens == len(ids_of(model, "<think>\nLet me see.\nYes.\n</think>"))
    assert reply.usage.completion_tokens == len(reply.tokens) == len(deltas) - 1
    assert deltas[-1].usage == reply.usage


def test_letters_that_spell_a_tag_are_text_where_it_is_a_token():
    model = qwen()
    says(model, letters(model, "<think>no</think>"), "<think>", letters(model, "a</think>b"), "</think>c")
    reply = model.generate("x")
    assert reply.text == "<think>no</think><think>a</think>b</think>c"  # a thought only begins an answer
    assert reply.reasoning == ""
    says(model, "<think>", letters(model, "a</think>b"), "</think>c")
    reply = model.generate("x")
    assert (reply.text, reply.reasoning) == ("c", "a</think>b")


def test_tags_split_over_tokens():
    model = chat_model(QWEN)  # no token for them
    says(model, " \n<think>\nHm <b> </thin\n</think>\n\nBlue </think> <think>.")
    deltas = list(model.stream("x"))
    assert together(deltas) == ("Blue </think> <think>.", "Hm <b> </thin")
    assert any(d.reasoning == "H" for d in deltas), "thoughts come as they are thought"


def test_an_answer_may_begin_like_a_tag():
    model = says(chat_model(QWEN), "<thinking> is a word")
    assert together(list(model.stream("x"))) == ("<thinking> is a word", "")
    says(model, "<thi")
    assert together(list(model.stream("x"))) == ("<thi", "")


@pytest.mark.parametrize("make", [qwen, lambda: chat_model(QWEN)])
def test_the_prompt_may_have_opened_the_thought(make):
    model = make()
    opened = model.processor.encoder.text("<|im_start|>assistant\n<think>\n")
    reply = says(model, "Hm.\n</think>\n\nBlue.").generate(opened)
    assert (reply.text, reply.reasoning) == ("Blue.", "Hm.")
    closed = model.processor.encoder.text("<|im_start|>assistant\n<think>\n\n</think>\n\n")
    assert says(model, "Blue.").generate(closed).text == "Blue."


def test_a_thought_cut_off_is_a_thought():
    model = says(qwen(), "<think>\nLong, long, long.")
    reply = model.generate("x", max_tokens=9)
    assert (reply.text, reply.finish_reason) == ("", "length")
    assert reply.reasoning == "Long, l"
    assert reply.usage.reasoning_tokens == 9


def test_stop_strings_are_looked_for_in_what_is_said():
    model = says(qwen(), "<think>\nEND of thought</think>\n\nsaid END rest")
    reply = model.generate("x", stop=["END"])
    assert (reply.text, reply.reasoning, reply.finish_reason) == ("said ", "END of thought", "stop")


def test_logprobs_are_those_of_content():
    model = says(qwen(), "<think>\nHm.</think>Blue.")
    reply = model.generate("x", logprobs=2)
    assert "".join(p.text for p in reply.logprobs) == "Blue."
    plain = says(chat_model(PLAIN), "Blue.").generate("x", logprobs=0)
    assert [p.text for p in plain.logprobs] == list("Blue.") and plain.logprobs[0].top == ()


def test_newlines_between_thought_and_answer_have_no_logprobs():
    model = says(qwen(), "<think>\nHm.\n</think>\n\nBlue.\n\nRed.")
    reply = model.generate("x", logprobs=0)
    assert reply.text == "Blue.\n\nRed." == "".join(p.text for p in reply.logprobs)
    deltas = list(model.stream("x", logprobs=0))
    assert "".join(d.logprob.text for d in deltas if d.logprob) == reply.text
    held = {"type": "regex", "regex": r"\n\d"}
    verbatim = says(qwen(), "<think>\nhm</think>\n7").generate("x", logprobs=0, response_format=held)
    assert verbatim.text == "\n7" == "".join(p.text for p in verbatim.logprobs)


def test_thinking_is_asked_of_the_template():
    model = qwen()
    on, off, left = (model.tokenize("x", thinking=t).text for t in (True, False, None))
    assert off.endswith("<think>\n\n</think>\n\n") and on == left
    says(model, "Blue.")
    reply = model.generate("x", thinking=False)
    assert (reply.text, reply.reasoning) == ("Blue.", "")


def test_thinking_that_cannot_be_asked_for():
    with pytest.raises(InvalidInputError, match="knows no thinking"):
        chat_model(PLAIN).generate("x", thinking=True)
    assert says(chat_model(PLAIN), "a").generate("x", thinking=False).text == "a"  # nothing to switch off
    always = chat_model(PLAIN + "<think>", marks=QWEN_MARKS)
    with pytest.raises(InvalidInputError, match="cannot be switched off"):
        always.tokenize("x", thinking=False)
    assert always.tokenize("x", thinking=True).text.endswith("<think>")
    with pytest.raises(InvalidInputError, match="need a chat template"):
        chat_model(None).tokenize("x", thinking=True)


def test_earlier_thoughts_are_the_templates_business():
    model = qwen()
    turn = {"role": "assistant", "content": "<think>\nHm.\n</think>\n\nBlue."}
    text = model.tokenize([{"role": "user", "content": "x"}, turn, {"role": "user", "content": "y"}]).text
    assert "Hm." not in text and "assistant\nBlue.<|im_end|>" in text
    kept = {"role": "assistant", "content": "Blue.", "reasoning": "Hm."}
    assert "<think>\nHm.\n</think>\n\nBlue." in model.tokenize([{"role": "user", "content": "x"}, kept]).text


def test_thoughts_typed_by_the_user_are_letters():
    model = qwen()
    prompt = model.tokenize("</think> <think>")
    assert not set(ids_of(model, "<think></think>")) & set(prompt.ids.tolist())
    assert says(model, "Blue.").generate("ends with <think>").reasoning == ""


def test_raw_ids_work_too():
    model = says(qwen(), "Hm</think>Blue")
    ids = np.array(ids_of(model, "a<think>"), np.int32)
    assert model.generate(Prompt(ids)).reasoning == "Hm"


def parts_of(text, cuts, *, exact=False, opened=False, calls=CALL):
    sections, out, at = Sections(THINK, calls, opened=opened), {}, 0
    for cut in [*sorted(cuts), len(text)]:
        for part, piece in sections.push(-1, text[at:cut]):
            out.setdefault(part, []).append(piece)
        at = cut
    for part, piece in sections.flush():
        out.setdefault(part, []).append(piece)
    return {k: v if k is Part.CALL else "".join(v) for k, v in out.items()}


WORDS = [*THINK.open[:4], "<think>", "</think>", "<tool_call>", "</tool_call>", "\n", " ", "x"]


@given(st.lists(st.sampled_from(WORDS), max_size=14), st.lists(st.integers(0, 60), max_size=12), st.booleans())
def test_pieces_do_not_change_what_is_told_apart(words, cuts, opened):
    text = "".join(words)
    whole = parts_of(text, [], opened=opened)
    assert parts_of(text, [c for c in cuts if c < len(text)], opened=opened) == whole
    assert parts_of(text, range(len(text)), opened=opened) == whole
    assert parts_of(text, range(len(text)), opened=opened, calls=None) == parts_of(text, [], opened=opened, calls=None)


def test_special_tokens_and_template_names_are_no_thinking():
    for template in (PLAIN, LFM2):
        model = chat_model(template, special=SPECIAL)
        assert model.processor.encoder.form(template).thoughts is None
