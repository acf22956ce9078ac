"""Reading a decoder's configuration, field by field, from config.json or GGUF metadata, with errors that name them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from izwi_lab.errors import CheckpointError
from izwi_lab.families.shared.nets.decoder.config import MOST, Rope, rope

_FARTHEST = 1e15  # no size, base or factor of a model; whole numbers up to here are exact as floats
_FETCH = "Fetch the model again, or check that the files are of this model."


class Fields:
    """Values by name. A JSON null counts as absent; what is absent without a default raises CheckpointError."""

    def __init__(self, values: Mapping[str, Any], *, source: str = "config.json", prefix: str = "") -> None:
        """Prefix: put before every name (GGUF keys start with the architecture); source: for the error texts."""
        self._values, self._source, self._prefix = values, source, prefix

    def find(self, name: str) -> Any:
        """The value as it is; None where absent."""
        return self._values.get(self._prefix + name)

    def has(self, name: str) -> bool:
        """Whether there is a value."""
        return self.find(name) is not None

    def number(self, name: str, default: float | None = None) -> float:
        """A number."""
        value = self.find(name)
        if value is None:
            if default is None:
                raise CheckpointError(f"{self._source} lacks {self._prefix + name!r}.", hint=_FETCH)
            return default
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            raise CheckpointError(
                f"{self._source} says {str(value)[:60]!r} for {self._prefix + name!r}; a number was expected.",
                hint=_FETCH,
            )
        if not -_FARTHEST <= value <= _FARTHEST:  # NaN is not either
            raise CheckpointError(f"{self._source} says {str(value)[:60]} for {self._prefix + name!r}.", hint=_FETCH)
        return float(value)

    def integer(self, name: str, default: int | None = None) -> int:
        """A whole number."""
        value = self.number(name, default)
        if value != int(value):
            raise CheckpointError(
                f"{self._source} says {value} for {self._prefix + name!r}; a whole number was expected.", hint=_FETCH
            )
        return int(value)

    def size(self, name: str, default: int | None = None, *, most: int = MOST["intermediate_size"]) -> int:
        """A whole number from 1 to `most`."""
        value = self.integer(name, default)
        if not 1 <= value <= most:
            raise CheckpointError(
                f"{self._source} says {value} for {self._prefix + name!r}.",
                hint=f"Expected a whole number from 1 to {most}.",
            )
        return value

    def layers(self, name: str) -> int:
        """How many layers there are: bounded before anything is made for each."""
        return self.size(name, most=MOST["num_layers"])

    def listed(self, name: str) -> Sequence[Any] | None:
        """A list; None where absent."""
        value = self.find(name)
        if value is not None and (isinstance(value, (str, bytes, Mapping)) or not hasattr(value, "__len__")):
            raise CheckpointError(
                f"{self._source} says {str(value)[:60]!r} for {self._prefix + name!r}; a list was expected.",
                hint=_FETCH,
            )
        found: Sequence[Any] | None = value
        return found

    def flag(self, name: str, default: bool) -> bool:
        """True or false."""
        value = self.find(name)
        if value is None:
            return default
        if not isinstance(value, bool):
            raise CheckpointError(
                f"{self._source} says {str(value)[:60]!r} for {self._prefix + name!r}; true or false was expected.",
                hint=_FETCH,
            )
        return value

    def expect(self, name: str, *allowed: Any) -> None:
        """Raise unless the value, None for absent, is one of `allowed`."""
        value = self.find(name)
        if value not in allowed:
            shown = ", ".join("absent" if a is None else repr(a) for a in allowed)
            raise CheckpointError(
                f"{self._source} says {value!r} for {self._prefix + name!r}, which this family does not have.",
                hint=f"Expected: {shown}.",
            )


def json_fields(config: Mapping[str, Any], *model_types: str) -> Fields:
    """Fields of a config.json. Raises CheckpointError unless its model_type is one of these."""
    if (kind := config.get("model_type")) not in model_types:
        raise CheckpointError(
            f"config.json says model_type {kind!r}.", hint=f"Expected {' or '.join(model_types)} for this family."
        )
    return Fields(config)


def gguf_fields(metadata: Mapping[str, Any], architecture: str) -> Fields:
    """Fields of a GGUF file, without the architecture before their names. Raises CheckpointError on another one."""
    if (kind := metadata.get("general.architecture")) != architecture:
        raise CheckpointError(
            f"The GGUF file holds a {kind!r} model.", hint=f"Expected the architecture {architecture}."
        )
    return Fields(metadata, source="The GGUF file", prefix=f"{architecture}.")


def json_rope(
    fields: Fields, head_dim: int, *, default_theta: float, kind: str | None = None, theta_name: str = "rope_theta"
) -> Rope:
    """The rope of a config.json: `rope_theta` with `rope_scaling`, or `rope_parameters` of transformers 5.

    kind: the layer type, where `rope_parameters` holds one rope for each (Gemma 3). theta_name: the older field.

    Raises:
        CheckpointError: a kind of scaling that is not supported, or one of its fields missing.
    """
    parameters = fields.find("rope_parameters")
    if kind is not None and isinstance(parameters, Mapping):
        parameters = parameters.get(kind)
    if parameters is None and theta_name == "rope_theta":  # the local rope is never scaled
        parameters = fields.find("rope_scaling")
    parameters = parameters or {}
    try:
        theta = Fields(parameters).number("rope_theta", 0.0) or fields.number(theta_name, default_theta)
        return rope(head_dim, theta, parameters)
    except KeyError as error:
        raise CheckpointError(f"The rope of config.json lacks {error}.", hint=_FETCH) from None
    except (AttributeError, TypeError, ValueError, ArithmeticError) as error:
        raise CheckpointError(f"The rope of config.json makes no sense ({error}).", hint=_FETCH) from None


def gguf_rope(fields: Fields, head_dim: int, *, default_theta: float) -> Rope:
    """The rope of a GGUF file. A factor without a type is linear, and with the type none it counts for nothing.

    Raises:
        CheckpointError: another kind of scaling.
    """
    fields.expect("rope.scaling.type", None, "none", "linear")
    factor = fields.number("rope.scaling.factor", 1.0)
    linear = fields.find("rope.scaling.type") != "none" and factor not in (0.0, 1.0)
    scaling = {"rope_type": "linear", "factor": factor} if linear else None
    return rope(head_dim, fields.number("rope.freq_base", default_theta), scaling)


def head_dim_of(fields: Fields, heads: int) -> int:
    """`head_dim` of a config.json, else the hidden size shared out among the heads."""
    return fields.size("head_dim", fields.size("hidden_size") // max(1, heads))
