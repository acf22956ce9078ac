"""The `izwi-lab` command: one module per subcommand, imported only when it is chosen.

Exit codes: 0 done, 1 an error that the message explains, 2 wrong usage, 130 interrupted with Ctrl-C.
"""

from __future__ import annotations

import argparse
import importlib
import io
import os
import sys
import traceback
from collections.abc import Sequence
from types import ModuleType

from izwi_lab import __version__
from izwi_lab.cli import console
from izwi_lab.errors import IzwiError, UnknownModelError

DONE, FAILED, USAGE, INTERRUPTED = 0, 1, 2, 130

COMMANDS = {
    "demo": "fetch the starter models, say a paragraph, hear it, answer it, and report how well it went",
    "list": "every model: task, size, licence, whether it is on disk and runs here",
    "pull": "download a model",
    "rm": "delete a model's files",
    "speak": "turn text into speech",
    "voices": "the voices of speech models, and cloned ones: make and list them",
    "transcribe": "turn speech into text or subtitles",
    "chat": "ask a chat model, once or in a conversation",
    "bench": "measure models beside their peers",
    "status": "devices, backends, models on disk, native kernels",
    "config": "show and change the settings file",
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns its exit code. Usage errors leave through SystemExit(2), as argparse does."""
    given = list(sys.argv[1:] if argv is None else argv)
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # as stderr has it: no letter may end a command
    module = _chosen(given)
    parser = build_parser(module)
    args = parser.parse_args(given)
    if module is None:
        parser.print_help()
        return USAGE
    try:
        return int(module.run(args))
    except KeyboardInterrupt:
        print("Interrupted.", file=sys.stderr)
        return INTERRUPTED
    except BrokenPipeError:  # the reader, such as `head`, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return FAILED
    except IzwiError as error:
        if args.debug:
            traceback.print_exc()
        console.note(f"izwi-lab {args.command}: {_told(error)}")
        return FAILED


def _told(error: IzwiError) -> str:
    """The error's message; where a model's name was unknown, with the command that shows them all."""
    text, command = str(error), "`izwi-lab list` shows them all."
    python = "izwi_lab.catalog.variants() lists the models."
    if python in text:
        return text.replace(python, command)
    return f"{text} {command}" if isinstance(error, UnknownModelError) and error.nearest else text


def build_parser(chosen: ModuleType | None) -> argparse.ArgumentParser:
    """The parser with all command names; only the chosen command's module has declared its flags."""
    parser = argparse.ArgumentParser(
        prog="izwi-lab", description="Local speech and chat models, on torch and MLX.", allow_abbrev=False
    )
    parser.add_argument("--version", action="version", version=f"izwi-lab {__version__}")
    parser.add_argument("--debug", action="store_true", help="show the full traceback of an error")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND")
    for name, summary in COMMANDS.items():
        command = commands.add_parser(
            name, help=summary, description=summary[0].upper() + summary[1:] + ".", allow_abbrev=False
        )
        command.add_argument("--debug", action="store_true", default=argparse.SUPPRESS, help=argparse.SUPPRESS)
        if chosen is not None and chosen.__name__.endswith(f".{name}"):
            chosen.add_arguments(command)
    return parser


def _chosen(argv: Sequence[str]) -> ModuleType | None:
    """The module of the first word that is no option (no global option takes a value)."""
    name = next((word for word in argv if not word.startswith("-")), None)
    return importlib.import_module(f"{__name__}.commands.{name}") if name in COMMANDS else None
