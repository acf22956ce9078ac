"""Chat through the engine: every option arrives by its name, and each loaded model has a cache of its own."""

from __future__ import annotations

import pytest

from izwi_lab.errors import InvalidInputError
from izwi_lab.families.shared.prompt_cache import PromptCache
from izwi_lab.families.shared.sampling import Sampling
from izwi_lab.families.shared.speculative import PromptLookup
from izwi_lab.runtime import api
from izwi_lab.runtime.types import ChatRequest
from izwi_lab.settings import Settings

CLOCK = {"type": "function", "function": {"name": "clock"}}
OPTIONS = dict(
    thinking=False, tools=[CLOCK], tool_choice="auto", response_format={"type": "text"}, logprobs=3,
    truncation="oldest", speculative=PromptLookup(),
)  # fmt: skip


def test_every_option_reaches_the_model(make_engine, fake, chat, monkeypatch):
    engine = make_engine()
    monkeypatch.setattr(api, "default_engine", lambda: engine)
    for ask in (engine.chat, lambda *a, **k: list(engine.stream_chat(*a, **k)), api.chat):
        fake.chat_options = {}
        ask("Hello.", model=chat, sampling=Sampling(), stop=["x"], **OPTIONS)
        assert isinstance(fake.chat_options.pop("cache"), PromptCache)
        assert fake.chat_options == OPTIONS
    assert {f for f in ChatRequest.__dataclass_fields__} >= {*OPTIONS, "sampling", "stop", "max_tokens", "seed"}


@pytest.mark.parametrize(
    ("options", "message"),
    [({"thinking": 1}, "thinking"), ({"logprobs": 99}, "logprobs"), ({"truncation": "x"}, "truncation"),
     ({"tools": [3]}, r"tools\[0\]"), ({"tool_choice": "required"}, "no tools"), ({"response_format": {}}, "type"),
     ({"speculative": 1}, "speculative"), ({"stop": "END"}, "list")],
)  # fmt: skip
def test_options_are_checked_before_a_model_is_loaded(make_engine, fake, chat, options, message):
    engine = make_engine()
    for ask in (engine.chat, engine.stream_chat):
        with pytest.raises(InvalidInputError, match=message):
            ask("Hello.", model=chat, **options)
    assert fake.loads == []


def test_calls_and_results_are_messages(make_engine, chat):
    call = {"id": "1", "type": "function", "function": {"name": "clock", "arguments": "{}"}}
    turns = [
        {"role": "user", "content": "Time?"},
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "1", "content": "noon"},
    ]
    assert "noon" in make_engine().chat(turns, model=chat).text
    with pytest.raises(InvalidInputError, match="content must be a str"):
        make_engine().chat([{"role": "assistant", "content": None}], model=chat)
    with pytest.raises(InvalidInputError, match="no character"):
        bad = {**call, "function": {"name": "clock", "arguments": "\ud800"}}
        make_engine().chat([*turns, {"role": "assistant", "content": "", "tool_calls": [bad]}], model=chat)


class Session:
    """As much of one as the cache looks at."""

    def __init__(self, size):
        self.prompt_ids, self.tokens, self.position, self.reach = [1, 2, 3], [], 3, 3
        self.state, self.nbytes, self.last, self.tally = {"length": 3}, size, None, None


class Model:
    class config:
        rewindable = staticmethod(lambda length, position: True)


def cache_of(engine, fake, chat):
    engine.chat("Hello.", model=chat)
    return fake.chat_options["cache"]


def test_each_model_has_one_cache_that_ends_with_it(make_engine, fake, chat, tts):
    engine = make_engine(prompt_cache_bytes=5000)
    cache = cache_of(engine, fake, chat)
    assert cache_of(engine, fake, chat) is cache and cache.limit_bytes == 5000
    before = engine.loaded()[0]
    cache.park(Model, Session(3000))
    after = engine.loaded()[0]
    assert (before.cache_bytes, after.cache_bytes) == (0, 3000) and after.nbytes == before.nbytes + 3000
    cache.park(Model, Session(9000))
    assert cache.nbytes == 3000, "larger than all there is"
    assert engine.unload(chat)
    assert len(cache) == 0
    cache.park(Model, Session(10))
    assert len(cache) == 0, "an answer that ends after the model has gone leaves nothing behind"
    assert cache_of(engine, fake, chat) is not cache


def test_the_limit_is_a_setting(make_engine, fake, chat):
    assert cache_of(make_engine(), fake, chat).limit_bytes == 10**9
    from izwi_lab.runtime.service import InferenceEngine

    for setting, limit in ((2000, 2000), (0, 0), (None, 10**9)):
        with InferenceEngine(load_format="dummy", config=Settings(prompt_cache=setting)) as engine:
            assert cache_of(engine, fake, chat).limit_bytes == limit
    with pytest.raises(InvalidInputError, match="limit_bytes"):
        make_engine(prompt_cache_bytes=-1)
