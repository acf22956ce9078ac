"""Names to variants: id, repo id, repo tail, display name or alias, whatever the case and punctuation.

Nothing is guessed: a name that is none of these raises UnknownModelError with the nearest ids, and a model of another
task raises WrongTaskError. (izwi 0.1.0-alpha-8 matched substrings and fell back to a default model without a word.)
"""

from __future__ import annotations

import difflib
import re
import unicodedata
from collections.abc import Mapping
from functools import cache
from types import MappingProxyType

from izwi_lab.catalog.store import catalog
from izwi_lab.catalog.variant import ModelVariant, Task
from izwi_lab.errors import UnknownModelError, WrongTaskError

_SYNONYMS = (
    (re.compile(r"(?<=\d)dot(?=\d)"), ""),  # "lfm2dot5"
    (re.compile(r"int([48])(?!\d)"), r"\1bit"),
    (re.compile(r"bfloat16"), "bf16"),
)
_SHOWN = 80  # characters of a caller's text repeated in an error
_COMPARED = 200  # characters compared when looking for near names: difflib is quadratic


def parse_model_variant(name: str) -> ModelVariant:
    """The variant that goes by `name`.

    Accepts the id (also the directory name), the repo id, the repo id without its owner, the display name and the
    row's aliases; case, spaces and punctuation do not matter.

    Raises:
        UnknownModelError: no variant goes by it; `nearest` holds up to five ids that come close.

    >>> parse_model_variant("parakeet tdt v3").id
    'Parakeet-TDT-0.6B-v3'
    """
    if not isinstance(name, str):
        raise UnknownModelError(f"A model's name was expected, {type(name).__name__} came.")
    found = _keys().get(normal_form(name))
    if found is None:
        raise _unknown(name)
    return catalog().by_id[found]


def parse_tts_model_variant(name: str | None = None) -> ModelVariant:
    """The speech model called `name`, or the default one. Raises UnknownModelError or WrongTaskError."""
    return for_task(name, Task.TTS)


def parse_chat_model_variant(name: str | None = None) -> ModelVariant:
    """The chat model called `name`, or the default one. Raises UnknownModelError or WrongTaskError."""
    return for_task(name, Task.CHAT)


def resolve_asr_model_variant(name: str | None = None) -> ModelVariant:
    """The recognition model called `name`, or the default one. Raises UnknownModelError or WrongTaskError."""
    return for_task(name, Task.ASR)


def for_task(name: str | None, task: Task) -> ModelVariant:
    """The variant called `name`, which must do `task`; without a name, the catalog's default for the task."""
    if name is None:
        return default(task)
    variant = parse_model_variant(name)
    if task not in variant.tasks:
        able = sorted((v for v in catalog().by_id.values() if task in v.tasks), key=lambda v: not v.enabled)
        names = [catalog().defaults[task]] if task in catalog().defaults else []
        names += [v.id for v in able if v.id not in names]
        raise WrongTaskError(
            f"{variant.id} does {', '.join(variant.tasks)}; a model for {task} was asked for.",
            hint=f"Models for {task}: {', '.join(_nearest(variant.id, names) or names[:5])}.",
        )
    return variant


def default(task: Task | str) -> ModelVariant:
    """The variant used for `task` when no model is named: one that the starter packs hold.

    Raises:
        UnknownModelError: the catalog names no default for this task.
    """
    chosen = catalog().defaults.get(_task(task))
    if chosen is None:
        raise UnknownModelError(
            f"There is no default model for {task}.", hint="Name one; izwi_lab.catalog.variants() lists them."
        )
    return catalog().by_id[chosen]


def normal_form(name: str) -> str:
    """What two spellings of one name have in common: letters and digits, lower case, a few words unified.

    Letters of any script are kept, so that "whisper-base-日本" does not pass for "whisper-base".
    """
    text = "".join(c for c in unicodedata.normalize("NFKC", name).casefold() if c.isalnum())
    for pattern, replacement in _SYNONYMS:
        text = pattern.sub(replacement, text)
    return text


@cache
def _keys() -> Mapping[str, str]:
    """Normal form -> id. Ids come before other names, so that a name never hides another model's id."""
    keys: dict[str, str] = {}
    variants = catalog().by_id.values()
    for kind in ("id", "repo", "repo_tail", "display_name", "aliases"):
        for variant in variants:
            value = getattr(variant, kind)
            for name in value if isinstance(value, tuple) else (value,):
                taken = keys.setdefault(normal_form(name), variant.id)
                if taken != variant.id:
                    raise ValueError(f"The catalog calls both {taken} and {variant.id} {name!r}.")
    return MappingProxyType(keys)


def _unknown(name: str) -> UnknownModelError:
    form = normal_form(name[:_COMPARED])
    nearest = _nearest(form, _keys()) if form else ()
    shown = repr(name if len(name) <= _SHOWN else name[:_SHOWN] + "…") if name.strip() else "an empty name"
    hint = f"Nearest: {', '.join(nearest)}." if nearest else "izwi_lab.catalog.variants() lists the models."
    return UnknownModelError(f"No model goes by {shown}.", nearest=nearest, hint=hint)


def _nearest(name: str, among: Mapping[str, str] | list[str], count: int = 5) -> tuple[str, ...]:
    """Up to `count` ids whose names come closest to `name`, best first; a tie goes to the catalog's order."""
    form = normal_form(name)
    keys = among if isinstance(among, Mapping) else {normal_form(i): i for i in among}
    close = difflib.get_close_matches(form, keys, n=4 * count, cutoff=0.5)
    close += [k for k in keys if len(form) >= 3 and k.startswith(form) and k not in close]
    return tuple(dict.fromkeys(keys[k] for k in close))[:count]


def _task(task: Task | str) -> Task:
    try:
        return Task(task)
    except ValueError:
        known = ", ".join(Task)
        raise UnknownModelError(f"There is no task {task!r}.", hint=f"Tasks: {known}.") from None
