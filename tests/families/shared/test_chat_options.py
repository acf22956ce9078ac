"""Every option is checked before anything is computed, and says what it wants."""

from __future__ import annotations

import pytest
from scripted_chat import CLOCK, WEATHER, qwen
from tiny_text import config, text_model

from izwi_lab.errors import InvalidInputError
from izwi_lab.families.shared.chat_options import ChatOptions
from izwi_lab.families.shared.sampling import Sampling
from izwi_lab.families.shared.speculative import PromptLookup

NAMED = {"type": "function", "function": {"name": "clock"}}
JSON = {"type": "json_object"}


def tool(name, **more):
    return {"type": "function", "function": {"name": name, **more}}


BAD = [
    ({"max_tokens": 0}, "max_tokens must be"), ({"max_tokens": 1.5}, "max_tokens"),
    ({"max_tokens": True}, "max_tokens"),
    ({"seed": -1}, "seed"), ({"seed": "x"}, "seed"), ({"seed": True}, "seed"),
    ({"stop": "END"}, r"Expected stop=\['END'\]"), ({"stop": [""]}, "non-empty"), ({"stop": [3]}, "non-empty"),
    ({"stop": None}, "non-empty"), ({"stop": {"a"}}, "non-empty"),
    ({"thinking": 1}, "thinking must be"), ({"thinking": "yes"}, "thinking"),
    ({"logprobs": 21}, "from 0 to 20"), ({"logprobs": -1}, "from 0 to 20"), ({"logprobs": True}, "from 0 to 20"),
    ({"truncation": "newest"}, "error, oldest"), ({"truncation": None}, "error, oldest"),
    ({"sampling": 0.7}, "sampling must be"), ({"speculative": 4}, "PromptLookup"),
    ({"response_format": "json"}, "mapping"), ({"response_format": {"type": "xml"}}, "'xml'"),
    ({"tools": WEATHER}, "must be a list"), ({"tools": "weather"}, "must be a list"), ({"tools": [3]}, r"tools\[0\]"),
    ({"tools": [{"type": "web_search"}]}, r"tools\[0\] is no function"), ({"tools": [{"name": "f"}]}, r"tools\[0\]"),
    ({"tools": [tool("")]}, "name ''"), ({"tools": [tool("a b")]}, "name 'a b'"), ({"tools": [tool("x" * 65)]}, "name"),
    ({"tools": [tool("f"), tool("f")]}, r"tools\[1\] has the name 'f'"),
    ({"tools": [tool("f", parameters={"type": "string"})]}, "schema of an object"),
    ({"tools": [tool("f", parameters="x")]}, "schema of an object"),
    ({"tools": [tool("f", description={1, 2})]}, "not JSON"),
    ({"tools": [tool("f", description="\ud800")]}, "not JSON"),
    ({"tool_choice": "any"}, "auto, none, required"), ({"tool_choice": "required"}, "there are no tools"),
    ({"tool_choice": NAMED}, "must name one of the tools"),
    ({"tool_choice": {"type": "x"}, "tools": [CLOCK]}, "must name"),
    ({"tool_choice": 3}, "auto, none, required"),
    ({"response_format": JSON, "stop": ["x"]}, "before it is whole"),
    ({"response_format": JSON, "tools": [CLOCK]}, "can hold no calls"),
    ({"response_format": JSON, "speculative": PromptLookup()}, "does not go with"),
    ({"tool_choice": "required", "tools": [CLOCK], "speculative": PromptLookup()}, "does not go with"),
]  # fmt: skip


@pytest.mark.parametrize(("options", "message"), BAD)
def test_bad_options(options, message):
    with pytest.raises(InvalidInputError, match=message):
        ChatOptions(**options)


def test_bad_options_are_refused_by_every_verb_before_reading():
    model = qwen()
    for verb in (model.generate, lambda *a, **k: list(model.stream(*a, **k))):
        with pytest.raises(InvalidInputError, match="max_tokens"):
            verb("x", max_tokens=0)
    assert model.read == 0


def test_good_options():
    ChatOptions(
        sampling=Sampling(temperature=1), max_tokens=1, stop=["a", "b"], seed=0, thinking=False, tools=[WEATHER, CLOCK],
        tool_choice=NAMED, response_format={"type": "text"}, logprobs=20, truncation="oldest",
    )  # fmt: skip
    ChatOptions(tools=[CLOCK], tool_choice="none", response_format=JSON)
    assert ChatOptions(tools=[WEATHER, CLOCK], tool_choice=NAMED).forced_functions == (CLOCK["function"],)


def test_a_model_without_a_tokenizer_says_so():
    with pytest.raises(InvalidInputError, match="no tokenizer"):
        text_model(config()).generate("x")
