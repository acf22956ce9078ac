"""`izwi-lab config`: show and change the settings file, every value checked before it is written."""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import re
import tempfile
import tomllib
from pathlib import Path
from typing import TYPE_CHECKING, Any

from izwi_lab.cli import console
from izwi_lab.errors import InvalidInputError

if TYPE_CHECKING:
    from izwi_lab.settings import Settings


_ENVIRONMENT_ONLY = "mlx"  # whether MLX may run here is a matter of the shell, not of the file


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the subcommands."""
    actions = parser.add_subparsers(dest="action", metavar="ACTION", required=True)
    show = actions.add_parser("show", help="every setting, its value and where it comes from")
    show.add_argument("--json", action="store_true", help="for programs")
    actions.add_parser("path", help="where the settings file is, or would be")
    get = actions.add_parser("get", help="one value")
    get.add_argument("key", metavar="KEY")
    put = actions.add_parser("set", help="write one value to the settings file")
    put.add_argument("key", metavar="KEY")
    put.add_argument("value", metavar="VALUE")
    unset = actions.add_parser("unset", help="take one value out of the settings file")
    unset.add_argument("key", metavar="KEY")


def run(args: argparse.Namespace) -> int:
    """Do the action."""
    from izwi_lab import settings

    if args.action == "path":
        console.say(str(settings.config_path()))
        return 0
    if args.action == "show":
        return _show(settings.load(), as_json=args.json)
    if args.action == "get":
        return _get(settings.load(), args.key)
    return _set(args.key, args.value) if args.action == "set" else _unset(args.key)


def _keys() -> tuple[str, ...]:
    from izwi_lab.settings import Settings

    return tuple(field.name for field in dataclasses.fields(Settings) if field.name != "sources")


def _known(key: str) -> str:
    if key not in _keys():
        raise InvalidInputError(f"{key!r} is no setting.", hint=f"Settings: {', '.join(_keys())}.")
    return key


def _in_file(key: str) -> str:
    if _known(key) == _ENVIRONMENT_ONLY:
        raise InvalidInputError(
            f"{key} is no setting of the file.",
            hint="Set the environment variable IZWI_ENABLE_MLX_RUNTIME, or backend = mlx in the file.",
        )
    return key


def _plain(value: Any) -> Any:
    return str(value) if isinstance(value, Path) else value


def _show(found: Settings, *, as_json: bool) -> int:
    values = {key: _plain(getattr(found, key)) for key in _keys()}
    if as_json:
        console.say_json({key: {"value": value, "source": found.sources.get(key)} for key, value in values.items()})
        return 0
    rows = [[key, "-" if v is None else str(v), found.sources.get(key, "default")] for key, v in values.items()]
    console.say(console.table(["SETTING", "VALUE", "FROM"], rows))
    return 0


def _get(found: Settings, key: str) -> int:
    """1 without output when the setting is not set, so that scripts can tell."""
    value = getattr(found, _known(key))
    if value is None:
        console.note(f"{key} is not set.")
        return 1
    console.say(str(value))
    return 0


def _set(key: str, text: str) -> int:
    from izwi_lab import settings

    _in_file(key)
    path = settings.config_path()
    before = _read(path)
    problem: InvalidInputError | None = None
    for literal in _literals(text):
        try:
            after = _with(before, key, literal)
            _check(after)
        except InvalidInputError as error:
            problem = problem or error
            continue
        _write(path, after)
        console.note(f"{key} = {literal} in {path}")
        _warn_if_overruled(key)
        return 0
    raise problem or InvalidInputError(f"{text!r} is no value for {key}.")


def _unset(key: str) -> int:
    from izwi_lab import settings

    _known(key)
    path = settings.config_path()
    before = _read(path)
    after = _with(before, key, None)
    if after == before:
        console.note(f"{key} is not set in {path}.")
        return 1
    _write(path, after)
    console.note(f"{key} is no longer set in {path}")
    _warn_if_overruled(key)
    return 0


def _literals(text: str) -> list[str]:
    """The ways TOML could hold this text: as it stands where that is a number or a switch, and as a string."""
    try:
        value = tomllib.loads(f"v = {text}")["v"]
        plain = [text.strip()] if isinstance(value, (int, float)) and "\n" not in text else []
    except tomllib.TOMLDecodeError:
        plain = []
    return [*plain, json.dumps(text, ensure_ascii=False)]  # a JSON string is a TOML basic string


def _with(text: str, key: str, literal: str | None) -> str:
    """The file with one line changed, added or taken out; comments and other lines stay as they are."""
    line = re.compile(rf"^[ \t]*{re.escape(key)}[ \t]*=.*\n?", re.MULTILINE)
    if literal is None:
        return line.sub("", text)
    if line.search(text):
        return line.sub(lambda _: f"{key} = {literal}\n", text, count=1)
    return f"{text}{'' if not text or text.endswith(chr(10)) else chr(10)}{key} = {literal}\n"


def _check(text: str) -> None:
    """Read the text exactly as the program will, without this process's environment. Raises InvalidInputError."""
    from izwi_lab import settings
    from izwi_lab.backends.choice import check_dtype, read_choice

    with tempfile.TemporaryDirectory() as folder:
        trial = Path(folder) / "config.toml"
        trial.write_text(text, encoding="utf-8")
        try:
            found = settings.load({"IZWI_CONFIG": str(trial)})
            read_choice(found.backend, found.device, str(trial))
            if found.dtype is not None:
                check_dtype(found.dtype, str(trial))
        except InvalidInputError as error:
            raise InvalidInputError(str(error).replace(str(trial), "The new file")) from None


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except FileNotFoundError:
        return ""
    except (OSError, UnicodeDecodeError) as error:
        raise InvalidInputError(f"The settings file {path} cannot be read: {error}.") from error


def _write(path: Path, text: str) -> None:
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        partial.write_text(text, encoding="utf-8")
        partial.replace(path)
    except OSError as error:
        raise InvalidInputError(f"The settings file {path} cannot be written: {error.strerror}.") from error
    finally:
        partial.unlink(missing_ok=True)


def _warn_if_overruled(key: str) -> None:
    """Say so when an environment variable has the last word."""
    from izwi_lab import settings

    source = settings.load().sources.get(key, "")
    if source.startswith("IZWI_"):
        console.note(f"Note: the environment variable {source} overrules it here.")
