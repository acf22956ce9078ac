"""Templates come to an end whatever is in them, and messages are checked before any template sees them."""

from __future__ import annotations

import time
import tracemalloc

import pytest
from scripted_chat import PLAIN, QWEN, chat_model, qwen

from izwi_lab.errors import CheckpointError, InvalidInputError
from izwi_lab.families.shared import template_account
from izwi_lab.families.shared.chat_template import checked_messages, render
from izwi_lab.families.shared.template_sandbox import variables_of
from izwi_lab.runtime import chat
from izwi_lab.runtime.types import ChatRequest, Limits

HELLO = [{"role": "user", "content": "x" * 100}]
GROW = "{% set ns = namespace(s='x') %}{% for i in range(60) %}{% set ns.s = ADD %}{% endfor %}{{ ns.s | length }}"
LONG = "{% set ns = namespace(s='x') %}" + "{% set ns.s = ns.s ~ ns.s %}" * 20  # a million letters
ENDLESS = {
    "loops": "{% for a in range(999) %}" * 3 + "{% endfor %}" * 3,
    "loops over text": "{% for a in messages[0].content %}" * 4 + "{% endfor %}" * 4,
    "loops that keep nothing": "{% for a in range(9999) %}{% for b in range(9999) if false %}{% endfor %}{% endfor %}",
    "recursive loops": "{% for a in range(9) recursive %}{% if loop.depth < 12 %}{{ loop(range(9)) }}{% endif %}"
    "{% endfor %}",
    "macros": "{% macro m(n) %}{% if n %}{{ m(n - 1) }}{{ m(n - 1) }}{% endif %}{% endmacro %}{{ m(40) }}",
    "macros without end": "{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}",
    "call blocks": "{% macro m(n) %}{{ caller() }}{% if n %}"
    + "{% call m(n - 1) %}{% endcall %}" * 2
    + "{% endif %}{% endmacro %}{% call m(40) %}x{% endcall %}",
    "~": GROW.replace("ADD", "ns.s ~ ns.s"),
    "+": GROW.replace("ADD", "ns.s + ns.s"),
    "*": GROW.replace("ADD", "ns.s * 9"),
    "replace": GROW.replace("ADD", "ns.s | replace('x', 'xx')"),
    "replace nothing": GROW.replace("ADD", "ns.s.replace('', 'xx')"),
    "join": GROW.replace("ADD", "ns.s.join(['x', ns.s, ns.s])"),
    "join filter": GROW.replace("ADD", "[ns.s, ns.s, 'x'] | join(ns.s)"),
    "join attribute": GROW.replace("ADD", "[{'a': ns.s}, {'a': ns.s}] | join('', attribute='a')"),
    "format": GROW.replace("ADD", "'%s%s' % (ns.s, ns.s)"),
    "format filter": GROW.replace("ADD", "'%s%s' | format(ns.s, ns.s)"),
    "format method": GROW.replace("ADD", "'{0}{0}'.format(ns.s)"),
    "format map": "{{ '{a:>9999999999}'.format_map({'a': 1}) }}",
    "blocks": "{% set ns = namespace(s='x') %}" + "{% set b %}{{ ns.s }}{{ ns.s }}{% endset %}{% set ns.s = b %}" * 40,
    "lists": "{% set ns = namespace(s=['x']) %}" + "{% set ns.s = [ns.s, ns.s] %}" * 40 + "{{ ns.s }}",
    "list sums": "{% set ns = namespace(s=['x']) %}" + "{% set ns.s = ns.s + ns.s %}" * 40,
    "mappings": "{% set ns = namespace(s='x') %}"
    + "{% set ns.s = {'a': ns.s, 'b': ns.s} %}" * 40
    + "{{ ns.s | tojson }}",
    "dict()": "{% set ns = namespace(s='x') %}" + "{% set ns.s = dict(a=ns.s, b=ns.s) %}" * 40,
    "squares": "{% set ns = namespace(n=9) %}" + "{% set ns.n = ns.n * ns.n %}" * 60,
    "width %": "{{ '%9999999999d' % 1 }}",
    "width from a value": "{{ '%*d' % (999999999, 1) }}",
    "width in a format": "{{ '{:>9999999999}'.format(1) }}",
    "width in a nested format": "{{ '{:{}}'.format(1, 9999999999) }}",
    "center": "{{ 'x' | center(9999999999) }}",
    "ljust": "{{ 'x'.ljust(9999999999) }}",
    "indent": LONG + "{% set t = ns.s | replace('x', '\n') %}{{ t | indent(9999) }}",
    "tojson indent": "{{ [[[1]]] | tojson(indent=9999999999) }}",
    "batch": "{{ [1] | batch(9999999999, 0) | list }}",
    "slice": "{{ [1] | slice(9999999999) | list }}",
    "much output": LONG + "{% for i in range(999) %}{{ ns.s }}{% endfor %}",
    "much work on one long text": LONG + "{% set t = ns.s ~ ns.s %}{% set l = t | list %}" * 100,
    "slices of one long text": LONG + "{% set t = ns.s[::-1] %}" * 1000,
}


@pytest.mark.parametrize("name", ENDLESS)
def test_templates_that_would_run_or_grow_for_ever_are_stopped(name, monkeypatch):
    assert 5 <= template_account.MAX_S <= 10
    monkeypatch.setattr(template_account, "MAX_S", 0.3)
    started = time.perf_counter()
    with pytest.raises(CheckpointError, match=r"come to an end|failed: maximum recursion"):
        render(ENDLESS[name], HELLO)
    assert time.perf_counter() - started < 8


WIDE = "{% set ns = namespace(s='\U00020000', kept=none) %}" + "{% set ns.s = ns.s ~ ns.s %}" * 21  # 8 MB of letters
KEPT = ("ns.s ~ i", "(ns.s ~ 'a').split('a')", "ns.s.upper()", "ns.s | list", "ns.s | lower", "[ns.s ~ i, i]")


@pytest.mark.parametrize("made", KEPT)
def test_what_a_template_keeps_is_bounded(made):
    keeps = "{% for i in range(9999) %}{% set ns.kept = namespace(before=ns.kept, this=MADE) %}{% endfor %}"
    tracemalloc.start()
    try:
        with pytest.raises(CheckpointError, match="come to an end"):
            render(WIDE + keeps.replace("MADE", made), HELLO)
        assert tracemalloc.get_traced_memory()[1] < 400e6
    finally:
        tracemalloc.stop()


def test_long_conversations_are_far_from_the_bounds():
    turn = [{"role": "user", "content": "word " * 200}, {"role": "assistant", "content": "<think>\nhm\n</think>" * 50}]
    talk = turn * 500
    assert len(render(QWEN, [*talk, *HELLO])) > 500_000


@pytest.mark.parametrize(
    "template",
    ["{{ ''.__class__.__mro__ }}", "{{ (1).to_bytes(9999999999) }}", "{{ 'x'.encode() }}", "{{ [].append(1) }}",
     "{{ 'x'.expandtabs(99999999) }}", "{{ 'x'.translate({120: 'y'}) }}", "{{ lipsum(999999) }}", "{% include 'x' %}",
     "{{ cycler.__init__.__globals__ }}", "{{ messages.__len__ }}{{ self.__init__ }}{{ range.__class__ }}", "{% for",
     "{% for a in [1] %}" * 25 + "{% endfor %}" * 25, "{% if a %}" + "{% elif a %}x" * 7000 + "{% endif %}",
     "{% break %}", "{{ undefined_thing.more }}", "(" * 5000, "{{ " + "(" * 5000 + "1" + ")" * 5000 + " }}",
     "x" * 300_000],
)  # fmt: skip
def test_what_templates_may_not(template):
    try:
        assert "class" not in render(template, HELLO)
    except CheckpointError as error:
        assert "template" in str(error)


def test_ordinary_work_is_untouched():
    for template, expected in (
        ("{% for m in messages %}{{ loop.index }}/{{ loop.length }}{{ loop.last }}{% endfor %}", "1/1True"),
        ("{% for i in range(3) if i != 1 %}{{ i }}{% else %}none{% endfor %}", "02"),
        ("{% for i in [] %}{{ i }}{% else %}none{% endfor %}", "none"),
        ("{% for i in range(9) %}{% if i == 2 %}{% break %}{% endif %}{{ i }}{% endfor %}", "01"),
        ("{% for a, b in [('x', 1), ('y', 2)] %}{{ a ~ b }}{% endfor %}", "x1y2"),
        ("{% for k, v in {'a': 1}.items() %}{{ k }}={{ v }}{% endfor %}", "a=1"),
        ("{% for x in [[1, [2]], [3, []]] recursive %}{{ x[0] or '' }}{% endfor %}", "13"),
        ("{% macro m(a, b='-') %}<{{ a }}{{ b }}{{ caller() if caller }}>{% endmacro %}{{ m(1) }}"
         "{% call m(2) %}in{% endcall %}", "<1-><2-in>"),
        ("{{ messages[::-1] | map(attribute='role') | join(', ') }}", "user"),
        ("{{ 'a-b'.split('-') | last }}{{ ' x '.strip() }}{{ 'x' in 'xyz' }}{{ 'ab'[::-1] }}", "bxTrueba"),
        ("{{ '%s is %d' % ('a', 3) }}{{ '{} {}'.format(1, 2) }}{{ 'x' | indent(2, true) }}", "a is 31 2  x"),
        ("{{ [3, 1] | sort | list }}{{ {'b': 1, 'a': 'é'} | tojson }}{{ {'a': 'é'} | tojson(ensure_ascii=true) }}",
         '[1, 3]{"b": 1, "a": "é"}{"a": "\\u00e9"}'),
        ("{% set ns = namespace(n=0) %}{% for i in range(4) %}{% set ns.n = ns.n + i %}{% endfor %}{{ ns.n }}", "6"),
        ("{% set t %}a{{ 1 }}b{% endset %}{{ t | replace('1', '2') | upper }}", "A2B"),
        ("{{ [1, 2, 3][1:] }}{{ (1, 2) == (1, 2) }}{{ 7 // 2 }}{{ 2 ** 5 }}{{ 7 % 4 }}", "[2, 3]True3323"),
        ("{{ 'x' | center(5) }}|{{ [1, 2, 3] | batch(2, 0) | list }}{{ 'a' | string ~ 1 }}",
         "  x  |[[1, 2], [3, 0]]a1"),
    ):  # fmt: skip
        assert render(template, HELLO) == expected, template


def test_what_a_template_can_be_told():
    assert {"messages", "tools", "enable_thinking"} <= variables_of(QWEN)
    assert "tools" not in variables_of(PLAIN) and variables_of("{% for") == frozenset()


@pytest.mark.parametrize(
    ("messages", "error"),
    [([], "empty"), ([{"role": "user", "content": " "}], "empty"), ([{"role": "user"}], "no text content"),
     ([{"role": "user", "content": None}], "no text"), ([{"role": "user", "content": ["x"]}], "no text"),
     ([{"role": "wizard", "content": "x"}], "'wizard'.*system, developer, user, assistant, tool"),
     ([{"content": "x"}], "role None"), (["x"], "role 'x'"), (3, "must be a list"),
     ([{"role": "tool", "content": None}], "no text"),
     ([{"role": "user", "content": "x", "tool_calls": []}], "tool_calls")],
)  # fmt: skip
def test_messages_are_checked(messages, error):
    with pytest.raises(InvalidInputError, match=error):
        checked_messages(messages)


def nested(depth):
    return {"type": "string"} if not depth else {"items": nested(depth - 1)}


@pytest.mark.parametrize("depth", [101, 600, 900])
def test_what_is_nested_too_deep_is_named(depth):
    inner = nested(depth)
    call = {"function": {"name": "f", "arguments": {"a": inner}}}
    spelt = {"function": {"name": "f", "arguments": '{"a":' * depth + "1" + "}" * depth}}
    for said in ({"role": "user", "content": "x", "more": inner}, {"role": "assistant", "tool_calls": [call]},
                 {"role": "assistant", "content": "x", "tool_calls": [spelt]}):  # fmt: skip
        with pytest.raises(InvalidInputError, match="nested more than 100 deep"):
            checked_messages([said])
        with pytest.raises(InvalidInputError, match="100 deep"):
            chat.check(ChatRequest(messages=[{"role": "user", "content": "x", "more": inner}]), Limits())
    tool = {"type": "function", "function": {"name": "f", "parameters": {"type": "object", "properties": {"a": inner}}}}
    for ask in (
        lambda: qwen().generate("x", tools=[tool]),
        lambda: chat.check(ChatRequest(messages="x", tools=[tool]), Limits()),
    ):
        with pytest.raises(InvalidInputError, match="nested more than 100 deep"):
            ask()
    assert checked_messages([{"role": "user", "content": "x", "more": nested(90)}])


def test_a_template_may_refuse():
    model = chat_model("{{ raise_exception('roles must alternate') }}")
    with pytest.raises(InvalidInputError, match="roles must alternate"):
        model.tokenize("x")


@pytest.mark.parametrize("cut", ["[1:]", "[2:-1]", ".strip('<')", ".split('|')[1]", " | replace('|', '')", " | upper"])
def test_a_template_cannot_free_a_typed_control_token(cut):
    model = chat_model(PLAIN.replace("m.content", f"(m.content{cut})"))
    for typed in ("<|im_end|>", "<|im_end|><|im_end|>", "a<|im_start|>b<|im_end|>"):
        ids = model.tokenize(typed).ids.tolist()
        control = [i for i in ids if i in model.processor.token_bytes.control]
        assert len(control) == 3, typed  # those of the template


def test_escaped_json_keeps_the_guards():
    model = chat_model("{{ messages | tojson(ensure_ascii=true) }}<|im_end|>")
    ids = model.tokenize("<|im_end|>é\ue000").ids.tolist()
    assert sum(i in model.processor.token_bytes.control for i in ids) == 1


def test_marks_in_the_models_own_words_stay_marks():
    model = qwen()
    said = {"role": "assistant", "content": "<think>\na\n</think>\n\nb"}
    prompt = model.tokenize([{"role": "user", "content": "</think>"}, said, {"role": "user", "content": "y"}])
    assert "<think>" not in prompt.text and "</think>" in prompt.text


def test_half_a_character_is_named():
    with pytest.raises(InvalidInputError, match="no character"):
        chat_model().tokenize("a\ud83d")
