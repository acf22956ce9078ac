"""Official config.json contents as package data: for `load_format="dummy"` and for `fit`, without a download."""

from __future__ import annotations

import json
import tomllib
from functools import cache
from importlib import resources
from typing import Any

from izwi_lab.catalog.store import catalog
from izwi_lab.catalog.variant import ModelVariant
from izwi_lab.errors import InvalidInputError

_GROUP_SIZE = 64  # mlx_lm.convert's default, which the mlx-community repos in the catalog use


def config(variant: ModelVariant) -> dict[str, Any]:
    """The variant's config.json. MLX-quantised copies get the original's, with a "quantization" entry.

    Raises:
        InvalidInputError: the catalog keeps none, because the official file could not be read in full.
    """
    text = _text(_config_id(variant))
    if text is None:
        raise InvalidInputError(
            f"The catalog keeps no config for {variant.id}: its official config.json is known only in part.",
            hint="Download the model: its own config.json is used then.",
        )
    values: dict[str, Any] = json.loads(text)
    if variant.layout == "mlx" and variant.quantisation.endswith("bit"):
        values["quantization"] = {
            "group_size": _GROUP_SIZE,
            "bits": int(variant.quantisation.removesuffix("bit")),
            "mode": "affine",
        }
    return values


def has_config(variant: ModelVariant) -> bool:
    """Whether `config(variant)` has something to give."""
    return _text(_config_id(variant)) is not None


def config_source(variant: ModelVariant) -> str:
    """Where the values of `config(variant)` come from, in words; empty without a config."""
    return _sources().get(_config_id(variant), "")


def _config_id(variant: ModelVariant) -> str:
    return catalog().configs.get(variant.id, variant.id)


@cache
def _text(config_id: str) -> str | None:
    if config_id not in _sources():  # ids reach this from outside: never make a path of one that is not listed
        return None
    file = resources.files("izwi_lab.catalog") / "data" / "configs" / f"{config_id}.json"
    return file.read_text("utf-8")


@cache
def _sources() -> dict[str, str]:
    file = resources.files("izwi_lab.catalog") / "data" / "configs" / "SOURCES.toml"
    return tomllib.loads(file.read_text("utf-8"))
