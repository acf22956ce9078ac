"""How a chat answer looks in a notebook: thoughts folded, calls shown, every text escaped."""

from __future__ import annotations

from izwi_lab.results import ChatReply, ToolCall, Usage

EVIL = "<script>alert(1)</script>"


def test_thoughts_calls_and_counts():
    calls = (ToolCall("call_1", "weather", '{"city": "Köln"}'),)
    usage = Usage(120, 30, 100, 12)
    html = ChatReply(
        "Blue.", "tool_calls", (1, 2), "m", "torch", reasoning="Hm.", tool_calls=calls, usage=usage
    )._repr_html_()
    assert "<details><summary" in html and "Reasoning (12 tokens)" in html and "Hm." in html
    assert "weather({&quot;city&quot;: &quot;Köln&quot;})" in html
    assert "120 of prompt, 100 of them kept from before" in html and "finished by tool_calls" in html


def test_a_plain_answer_is_as_plain_as_before():
    html = ChatReply("Blue.", "stop", (1, 2), "m", "torch")._repr_html_()
    assert "details" not in html and "prompt" not in html and "calls" not in html and "Blue." in html


def test_everything_is_escaped():
    calls = (ToolCall(EVIL, EVIL, EVIL),)
    html = ChatReply(EVIL, EVIL, (), EVIL, EVIL, reasoning=EVIL, tool_calls=calls)._repr_html_()
    assert "<script" not in html and html.count("&lt;script") >= 5
