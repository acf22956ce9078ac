"""Flags that several commands share, and their checks."""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from izwi_lab.cli import console
from izwi_lab.errors import InvalidInputError

if TYPE_CHECKING:
    from izwi_lab.runtime.service import InferenceEngine


def add_backend(parser: argparse.ArgumentParser) -> None:
    """--backend and --device."""
    parser.add_argument(
        "--backend",
        default="auto",
        metavar="NAME",
        help="torch, mlx, cpu, cuda, mps, or both as in torch:cuda:0 (default: auto, see `izwi-lab status`)",
    )
    parser.add_argument("--device", metavar="NAME", help="such as cpu, cuda:0, mps, gpu (default: the backend's best)")


def add_model(parser: argparse.ArgumentParser, what: str) -> None:
    """-m/--model."""
    parser.add_argument(
        "-m", "--model", metavar="ID", help=f"{what}: a catalog id, hub repo or folder (default: a starter model)"
    )


def add_seed(parser: argparse.ArgumentParser) -> None:
    """--seed."""
    parser.add_argument("--seed", type=int, metavar="N", help="equal seeds give equal results")


def positive(text: str) -> float:
    """An argparse type: a finite number above 0."""
    value = float(text)
    if not (math.isfinite(value) and value > 0):
        raise argparse.ArgumentTypeError(f"expected a number above 0, got {text}")
    return value


def count(text: str) -> int:
    """An argparse type: a whole number of 1 or more."""
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"expected a whole number of 1 or more, got {text}")
    return value


@contextmanager
def engine(args: argparse.Namespace) -> Iterator[InferenceEngine]:
    """The engine with the command's --backend and --device; everything under way stops when the block is left."""
    from izwi_lab.runtime.service import InferenceEngine

    with InferenceEngine(backend=args.backend, device=args.device) as made:
        yield made


def path(text: str) -> Path:
    """A path given by the user, with the home folder for "~"."""
    try:
        return Path(text).expanduser()
    except RuntimeError:
        raise InvalidInputError(f"There is no folder {text!r}: no such user.", hint="Check the path.") from None


def text_or_stdin(text: str, what: str) -> str:
    """The argument itself, or all of standard input for "-"."""
    if text != "-":
        return text
    if sys.stdin.isatty():
        console.note(f"Type {what}, then Ctrl-D.")
    try:
        read = sys.stdin.read()
    except UnicodeDecodeError as error:
        raise InvalidInputError(
            f"Standard input is not {error.encoding} text: {error.reason} at byte {error.start}.",
            hint="Convert it first, for example with iconv.",
        ) from None
    if not read.strip():
        raise InvalidInputError(f"Standard input holds no {what}.", hint="Pipe it in, or give it instead of '-'.")
    return read
