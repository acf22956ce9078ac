"""Settings of this machine: environment variables over a TOML file over nothing. At the bottom: any layer may read it.

# ~/.config/izwi/config.toml, or the file that IZWI_CONFIG names
backend = "torch"          # IZWI_BACKEND: torch, mlx, cpu, cuda, mps, torch:cuda:0, mlx:gpu, …
device = "cuda:0"
dtype = "bfloat16"
models_dir = "/data/izwi"  # IZWI_MODELS_DIR
idle_ttl_s = 600           # unload a model that nobody used for this long
memory_budget = "12 GB"    # bytes, or a number with MB, GB, MiB or GiB
prompt_cache = "1 GB"      # what each chat model keeps of its conversations; 0 keeps nothing
threads = 8                # IZWI_NUM_THREADS
"""

from __future__ import annotations

import os
import re
import tomllib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final

from izwi_lab.errors import InvalidInputError

_ENVIRONMENT: Final = {
    "backend": "IZWI_BACKEND",
    "models_dir": "IZWI_MODELS_DIR",
    "threads": "IZWI_NUM_THREADS",
    "mlx": "IZWI_ENABLE_MLX_RUNTIME",
}
_UNITS: Final = {"": 1, "B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "KIB": 2**10, "MIB": 2**20, "GIB": 2**30}
_TRUE, _FALSE = {"1", "true", "yes", "on"}, {"0", "false", "no", "off"}


@dataclass(frozen=True, slots=True)
class Settings:
    """What the environment and the configuration file ask for; None where they say nothing.

    mlx: IZWI_ENABLE_MLX_RUNTIME, True prefers MLX and False forbids it. idle_ttl_s: seconds; memory_budget: bytes of
    loaded models; prompt_cache: bytes of each model's conversations. sources: for each value that is set, the variable
    or file it came from.
    """

    backend: str | None = None
    device: str | None = None
    dtype: str | None = None
    models_dir: Path | None = None
    idle_ttl_s: float | None = None
    memory_budget: int | None = None
    prompt_cache: int | None = None
    threads: int | None = None
    mlx: bool | None = None
    sources: Mapping[str, str] = field(default_factory=lambda: MappingProxyType({}))


def load(environment: Mapping[str, str] | None = None) -> Settings:
    """Read the settings now: the environment (default: this process's) wins over the configuration file.

    Raises:
        InvalidInputError: a value of the wrong kind, an unknown key, broken TOML, or IZWI_CONFIG naming no file.
    """
    env = os.environ if environment is None else environment
    path = config_path(env)
    found: dict[str, Any] = {}
    sources: dict[str, str] = {}
    for key, value in _read(path, named=bool(env.get("IZWI_CONFIG"))).items():
        found[key], sources[key] = _checked(key, value, str(path)), str(path)
    for key, variable in _ENVIRONMENT.items():
        text = env.get(variable, "").strip()
        if text:
            found[key], sources[key] = _checked(key, text, variable), variable
    if sources.get("backend") == _ENVIRONMENT["backend"] and sources.get("device") == str(path):
        del found["device"], sources["device"]  # the file's device belongs to the file's backend
    return Settings(**found, sources=MappingProxyType(sources))


def config_path(environment: Mapping[str, str] | None = None) -> Path:
    """The configuration file: what IZWI_CONFIG names, else ~/.config/izwi/config.toml. It need not exist."""
    env = os.environ if environment is None else environment
    named = env.get("IZWI_CONFIG")
    return Path(named).expanduser() if named else Path.home() / ".config" / "izwi" / "config.toml"


def _read(path: Path, *, named: bool) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text("utf-8"))
    except FileNotFoundError:
        if not named:
            return {}
        raise InvalidInputError(f"IZWI_CONFIG names {path}, where there is no file.") from None
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as problem:
        raise InvalidInputError(f"The configuration file {path} cannot be read: {problem}.") from None


def _checked(key: str, value: Any, source: str) -> Any:
    check = _CHECKS.get(key)
    if check is None or (key == "mlx" and source != _ENVIRONMENT["mlx"]):
        known = ", ".join(k for k in _CHECKS if k != "mlx")
        raise InvalidInputError(f"{source} sets {key!r}, which is no setting.", hint=f"Settings: {known}.")
    try:
        return check(value)
    except (TypeError, ValueError) as problem:
        raise InvalidInputError(f"{source} sets {key} to {value!r}: {problem}.") from None


def _text(value: Any) -> str:
    if not isinstance(value, str) or not value.strip():
        raise ValueError("a text was expected")
    return value.strip()


def _path(value: Any) -> Path:
    try:
        return Path(_text(value)).expanduser()
    except RuntimeError as problem:  # "~nobody/models"
        raise ValueError("there is no such user") from problem


def _seconds(value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < float("inf"):
        raise ValueError("a number of seconds, 0 or more, was expected")
    return float(value)


def _bytes(value: Any) -> int:
    if isinstance(value, int) and not isinstance(value, bool) and value > 0:
        return value
    match = (
        re.fullmatch(r"(\d{1,15}(?:\.\d+)?)\s*([KMG]?i?B)?", value.strip(), re.I) if isinstance(value, str) else None
    )
    unit = _UNITS.get((match[2] or "").upper()) if match else None
    if match is None or unit is None or (size := int(float(match[1]) * unit)) < 1:
        raise ValueError("bytes were expected, such as 12000000000 or '12 GB'")
    return size


def _threads(value: Any) -> int:
    if isinstance(value, str) and value.isascii() and value.isdigit():
        value = int(value)
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise ValueError("a whole number of threads, 1 or more, was expected")
    return value


def _switch(value: Any) -> bool:
    if str(value).lower() not in _TRUE | _FALSE:
        raise ValueError("1 or 0 was expected")
    return str(value).lower() in _TRUE


_CHECKS: Final[Mapping[str, Callable[[Any], Any]]] = {
    "backend": _text,
    "device": _text,
    "dtype": _text,
    "models_dir": _path,
    "idle_ttl_s": _seconds,
    "memory_budget": _bytes,
    "prompt_cache": lambda value: 0 if value in (0, "0") and value is not False else _bytes(value),
    "threads": _threads,
    "mlx": _switch,
}
