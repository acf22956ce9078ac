"""Options of the wrong kind are told at once, by their names."""

from __future__ import annotations

import dataclasses

import pytest

from izwi_lab import InferenceEngine
from izwi_lab.cancel import CancelToken
from izwi_lab.errors import InvalidInputError
from izwi_lab.runtime.types import ChatRequest, Limits
from izwi_lab.settings import Settings


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("config", {}), ("limits", 5), ("batching", {"sequences": 3}), ("queue", 3), ("models_dir", 5),
        ("backend", 5), ("device", 7), ("dtype", b"float32"), ("idle_ttl_s", "soon"), ("idle_ttl_s", True),
        ("memory_budget_bytes", "1GB"), ("prompt_cache_bytes", "1GB"), ("memory_budget_bytes", float("nan")),
    ],
)  # fmt: skip
def test_an_engine_tells_which_option_is_wrong(name, value):
    with pytest.raises(InvalidInputError, match=f"^{name} must be"):
        InferenceEngine(**{"config": Settings(), name: value})


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("id", ""), ("id", 5), ("priority", []), ("priority", "urgent"), ("tenant", 3), ("backend", 5),
        ("device", []), ("dtype", {}), ("download", "no"), ("progress", 5), ("timeout_s", float("nan")),
    ],
)  # fmt: skip
def test_a_request_tells_which_option_is_wrong(name, value):
    request = dataclasses.replace(ChatRequest(messages="hi"), **{name: value})
    with InferenceEngine(config=Settings()) as engine, pytest.raises(InvalidInputError, match=f"^{name} must be"):
        engine.run(request)


@pytest.mark.parametrize("value", ["x", float("nan"), -1, 0, True])
def test_a_token_has_a_time_or_none(value):
    with pytest.raises(InvalidInputError, match="timeout_s must be above 0"):
        CancelToken(timeout_s=value)


@pytest.mark.parametrize("name", ["text_chars", "chat_chars", "audio_s"])
@pytest.mark.parametrize("value", [0, -1, "many", None, float("nan")])
def test_limits_are_numbers(name, value):
    with pytest.raises(InvalidInputError, match=f"Limits: {name} must be a number above 0"):
        Limits(**{name: value})
