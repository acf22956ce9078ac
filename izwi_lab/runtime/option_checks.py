"""What an engine's and a request's options must be, where a wrong one would only be noticed later, or never."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from typing import Any

from izwi_lab.engine.admission import QueueLimits
from izwi_lab.engine.lane import LaneOptions
from izwi_lab.errors import InvalidInputError
from izwi_lab.runtime.types import PRIORITIES, GenerationRequest, Limits
from izwi_lab.settings import Settings

_ENGINE: Mapping[str, tuple[type[Any], ...]] = {
    "config": (Settings,),
    "limits": (Limits,),
    "batching": (LaneOptions,),
    "queue": (QueueLimits,),
    "models_dir": (str, os.PathLike),
    "backend": (str,),
    "device": (str,),
    "dtype": (str,),
}


def check_engine(
    *, idle_ttl_s: object, memory_budget_bytes: object, prompt_cache_bytes: object, **options: object
) -> None:
    """Raise InvalidInputError for an option of the engine of the wrong type."""
    for name, kinds in _ENGINE.items():
        _check_type(name, options[name], kinds)
    if idle_ttl_s not in (None, "auto"):
        _check_number("idle_ttl_s", idle_ttl_s)
    for name, value in (("memory_budget_bytes", memory_budget_bytes), ("prompt_cache_bytes", prompt_cache_bytes)):
        if value is not None:
            _check_number(name, value)


def check_place(**named: object) -> None:
    """Raise InvalidInputError for a backend, device or dtype that is no word."""
    for name, value in named.items():
        _check_type(name, value, (str,))


def check_request(request: GenerationRequest) -> None:
    """Raise InvalidInputError for what no request may say of its place and its standing."""
    check_place(backend=request.backend, device=request.device, dtype=request.dtype)
    if not isinstance(request.id, str) or not request.id:
        raise InvalidInputError(f"id must be some text, got {request.id!r:.80}.")
    if not isinstance(request.priority, str) or request.priority not in PRIORITIES:
        raise InvalidInputError(f"priority must be one of {', '.join(PRIORITIES)}, got {request.priority!r:.80}.")
    if not isinstance(request.tenant, str):
        raise InvalidInputError(f"tenant must be a str, got {type(request.tenant).__name__}.")
    if not isinstance(request.download, bool):
        raise InvalidInputError(f"download must be True or False, got {request.download!r:.80}.")
    if request.progress is not None and not callable(request.progress):
        raise InvalidInputError(f"progress must be a function or None, got {request.progress!r:.80}.")


def _check_type(name: str, value: object, kinds: tuple[type[Any], ...]) -> None:
    if value is not None and not isinstance(value, kinds):
        wanted = " or ".join(kind.__name__ for kind in kinds)
        raise InvalidInputError(f"{name} must be a {wanted} or None, got {value!r:.80}.")


def _check_number(name: str, value: object) -> None:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or math.isnan(value):
        raise InvalidInputError(f"{name} must be a number or None, got {value!r:.80}.")
