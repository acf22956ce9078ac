"""What exists: model variants as data, found by name, with what they can do and the memory they need.

>>> from izwi_lab import catalog
>>> catalog.get("smollm2 135m instruct").id
'SmolLM2-135M-Instruct'
>>> [v.id for v in catalog.variants(task="tts", family="kokoro")]
['Kokoro-82M']

Nothing here imports numpy, torch or mlx, and the data files are read when the first name is looked up.
"""

from __future__ import annotations

from dataclasses import dataclass

from izwi_lab.catalog.abilities import Capabilities, capabilities, family_backends
from izwi_lab.catalog.configs import config, config_source, has_config
from izwi_lab.catalog.memory import Fit, fit
from izwi_lab.catalog.parse import (
    default,
    parse_chat_model_variant,
    parse_model_variant,
    parse_tts_model_variant,
    resolve_asr_model_variant,
)
from izwi_lab.catalog.store import catalog as _catalog
from izwi_lab.catalog.variant import (
    Family,
    FileSpec,
    Layout,
    ModelVariant,
    Package,
    StarterFile,
    StarterPack,
    Task,
)
from izwi_lab.errors import InvalidInputError

__all__ = [
    "Capabilities",
    "Family",
    "FileSpec",
    "Fit",
    "Layout",
    "ModelVariant",
    "Package",
    "Row",
    "StarterFile",
    "StarterPack",
    "Task",
    "capabilities",
    "config",
    "config_source",
    "default",
    "family_backends",
    "fit",
    "get",
    "has_config",
    "parse_chat_model_variant",
    "parse_model_variant",
    "parse_tts_model_variant",
    "resolve_asr_model_variant",
    "table",
    "variants",
]


def get(name: str | ModelVariant) -> ModelVariant:
    """The variant called `name` (see `parse_model_variant`); a variant is returned as it is."""
    return name if isinstance(name, ModelVariant) else parse_model_variant(name)


def variants(
    task: Task | str | None = None, family: Family | str | None = None, include_disabled: bool = False
) -> tuple[ModelVariant, ...]:
    """The catalog's variants in its own order, optionally of one task or family.

    Disabled ones (`variant.disabled_reason` says why) are left out unless asked for; all can be had by name.

    Raises:
        InvalidInputError: there is no such task or family.
    """
    try:
        wanted_task = Task(task) if task is not None else None
        wanted_family = Family(family) if family is not None else None
    except ValueError as problem:
        raise InvalidInputError(
            f"{problem}.", hint=f"Tasks: {', '.join(Task)}. Families: {', '.join(Family)}."
        ) from None
    return tuple(
        v
        for v in _catalog().by_id.values()
        if (include_disabled or v.enabled)
        and (wanted_task is None or wanted_task in v.tasks)
        and (wanted_family is None or v.family == wanted_family)
    )


@dataclass(frozen=True, slots=True)
class Row:
    """One line of `table()`: plain values, ready for a README table, a CLI listing or a data frame.

    runs_on: backends with a net for it in this release; release: the one that brings it. starter: whether it can be
    had from the package registries alone.
    """

    id: str
    name: str
    family: str
    tasks: tuple[str, ...]
    size_bytes: int
    quantisation: str
    licence: str
    languages: tuple[str, ...]
    voices: int
    gated: bool
    starter: bool
    enabled: bool
    runs_on: tuple[str, ...]
    release: str
    notes: str


def table(task: Task | str | None = None, *, include_disabled: bool = True) -> tuple[Row, ...]:
    """The catalog as rows of plain values, in its own order."""
    return tuple(_row(v) for v in variants(task, include_disabled=include_disabled))


def _row(v: ModelVariant) -> Row:
    can = capabilities(v)
    return Row(
        id=v.id,
        name=v.display_name,
        family=v.family.value,
        tasks=tuple(t.value for t in v.tasks),
        size_bytes=v.size_bytes,
        quantisation=v.quantisation,
        licence=v.licence,
        languages=v.languages,
        voices=len(v.voices),
        gated=v.gated,
        starter=v.starter is not None,
        enabled=v.enabled,
        runs_on=can.backends,
        release=can.release,
        notes=v.notes,
    )
