"""The catalog's rows: reads `data/*.toml` once and checks what a reader of the files could get wrong."""

from __future__ import annotations

import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cache
from importlib import resources
from types import MappingProxyType
from typing import Any

from izwi_lab.catalog.variant import (
    Family,
    FileSpec,
    FrozenMap,
    Layout,
    ModelVariant,
    Package,
    StarterFile,
    StarterPack,
    Task,
)

_VARIANT_KEYS = {
    *("id", "display_name", "repo", "revision", "revision_seen", "tasks", "layout", "dtype", "size_bytes"),
    *("size_estimated", "parameters", "files", "optional_files", "voice_files", "quantisation", "licence"),
    *("languages", "voices", "sample_rate_hz", "gated", "hub", "disabled", "aliases", "starter", "starter_layout"),
    *("notes", "settings", "config", "default"),
}
_STARTER_KEYS = {"note", "packages", "files", "each", "alternative"}


@dataclass(frozen=True, slots=True)
class FamilyInfo:
    """One file of the catalog: a family, the release of izwi_lab that brings it, and its rows."""

    family: Family
    release: str
    variants: tuple[ModelVariant, ...]


@dataclass(frozen=True, slots=True)
class Catalog:
    """Everything the data files say. `defaults`: the variant used for a task when no model is named."""

    families: Mapping[Family, FamilyInfo]
    by_id: Mapping[str, ModelVariant]
    defaults: Mapping[Task, str]
    configs: Mapping[str, str]


@cache
def catalog() -> Catalog:
    """The catalog, read at first use. Rows keep the order of the files' `order` and of the rows in them."""
    folder = resources.files("izwi_lab.catalog") / "data"
    tables = [tomllib.loads(f.read_text("utf-8")) for f in folder.iterdir() if f.name.endswith(".toml")]
    families: dict[Family, FamilyInfo] = {}
    by_id: dict[str, ModelVariant] = {}
    defaults: dict[Task, str] = {}
    configs: dict[str, str] = {}
    for table in sorted(tables, key=lambda t: t["order"]):
        family = Family(table["family"])
        rows = [{**table.get("defaults", {}), **row} for row in table["variant"]]
        made = tuple(_variant(family, row) for row in rows)
        families[family] = FamilyInfo(family, table["release"], made)
        for row, variant in zip(rows, made, strict=True):
            if by_id.setdefault(variant.id, variant) is not variant:
                raise ValueError(f"The catalog has two rows called {variant.id}.")
            configs[variant.id] = row.get("config", variant.id)
            if row.get("default"):
                defaults[variant.task] = variant.id
    return Catalog(
        MappingProxyType(families), MappingProxyType(by_id), MappingProxyType(defaults), MappingProxyType(configs)
    )


def _variant(family: Family, row: Mapping[str, Any]) -> ModelVariant:
    _known(row, _VARIANT_KEYS, str(row.get("id")))
    starter = row.get("starter")
    notes = row.get("notes", "")
    if "revision" not in row and row.get("hub", True):
        notes = f"{notes} No commit could be verified: follows main.".strip()
    elif seen := row.get("revision_seen"):
        notes = f"{notes} The commit was seen {seen}.".strip()
    return ModelVariant(
        id=row["id"],
        display_name=row["display_name"],
        repo=row["repo"],
        family=family,
        tasks=tuple(Task(t) for t in row["tasks"]),
        layout=Layout(row["layout"]),
        size_bytes=row["size_bytes"],
        revision=row.get("revision", "main"),
        files=_hub_files(row),
        quantisation=row.get("quantisation", "none"),
        licence=row["licence"],
        languages=tuple(row.get("languages", ())),
        voices=tuple(row.get("voices", ())),
        sample_rate_hz=row.get("sample_rate_hz"),
        gated=row.get("gated", False),
        enabled="disabled" not in row,
        aliases=tuple(row.get("aliases", ())),
        starter=_starter(starter) if starter else None,
        starter_layout=Layout(row["starter_layout"]) if starter else None,
        notes=notes,
        dtype=row.get("dtype", "bfloat16"),
        parameters=row.get("parameters"),
        size_estimated=row.get("size_estimated", False),
        hub=row.get("hub", True),
        disabled_reason=row.get("disabled", ""),
        settings=FrozenMap(row.get("settings")),
    )


def _hub_files(row: Mapping[str, Any]) -> tuple[FileSpec, ...]:
    files = [FileSpec(**f) if isinstance(f, dict) else FileSpec(f) for f in row.get("files", ())]
    if pattern := row.get("voice_files"):
        files += [FileSpec(pattern.format(voice=v)) for v in row["voices"]]
    return (*files, *(FileSpec(f, optional=True) for f in row.get("optional_files", ())))


def _starter(table: Mapping[str, Any]) -> StarterPack:
    _known(table, _STARTER_KEYS, "a starter pack")
    packages = tuple(Package(**p) for p in table["packages"])
    files = [StarterFile(**{**f, "members": tuple(f["members"])}) for f in table["files"]]
    for group in table.get("each", ()):
        files += _each(group)
    alternative = table.get("alternative")
    return StarterPack(
        packages=packages,
        files=tuple(files),
        download_bytes=sum(p.bytes or 0 for p in packages),
        alternative=_starter(alternative) if alternative else None,
        note=table.get("note", ""),
    )


def _each(group: Mapping[str, Any]) -> Iterable[StarterFile]:
    """Many files of one shape: `{key}` in name, members and array is replaced by each key of its sha256 table."""
    for key, sha256 in group["sha256"].items():
        yield StarterFile(
            name=group["name"].format(key=key),
            members=tuple(m.format(key=key) for m in group["members"]),
            sha256=sha256,
            bytes=group["bytes"],
            array=group["array"].format(key=key) if "array" in group else None,
        )


def _known(table: Mapping[str, Any], allowed: set[str], what: str) -> None:
    if unknown := sorted(set(table) - allowed):
        raise ValueError(f"The catalog does not know {', '.join(unknown)} in {what}.")
