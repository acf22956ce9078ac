"""What one rendering of a chat template has used, and how large what it makes next would be."""

from __future__ import annotations

import re
import time
from collections.abc import Iterable, Mapping
from contextvars import ContextVar
from typing import Any

from izwi_lab.errors import CheckpointError

MAX_TICKS = 1_000_000  # iterations, calls and filters together
MAX_CHARACTERS = 4_000_000  # of any one text, or of a list with all it holds
MAX_MADE = 64_000_000  # characters of all that is made, kept or not: published templates make ten times what they show
MAX_FACTOR = 10_000  # repetitions, powers, widths of padding
MAX_S = 8.0


class Account:
    """Ticks, seconds and characters of one rendering."""

    def __init__(self) -> None:
        self._ticks = self._made = 0
        self._ends_s = time.monotonic() + MAX_S

    def tick(self) -> None:
        """One step more, or raise CheckpointError."""
        self._ticks += 1
        if self._ticks > MAX_TICKS or time.monotonic() > self._ends_s:
            raise endless()

    def made(self, size: int) -> None:
        """Count what was made: the template may keep all of it, so that its sum bounds the memory."""
        self._made += size
        if self._made > MAX_MADE:
            raise endless()


account: ContextVar[Account] = ContextVar("account")


def endless() -> CheckpointError:
    """The error for a template that would run or grow for ever."""
    return CheckpointError("The chat template does not come to an end.", hint="Use template=False.")


def tick() -> None:
    """Count a step of the rendering under way."""
    account.get().tick()


def allow(size: float, limit: int = MAX_CHARACTERS) -> None:
    """Count a step; raise if what it makes would be larger than `limit`."""
    tick()
    if size > limit:
        raise endless()


def made(size: int) -> None:
    """Count a step that made so many characters; raise if these, or all so far, are too many."""
    allow(size)
    account.get().made(size)


def weight(value: Any) -> int:
    """Characters of a value as text, roughly, parts that are shared counted each time. Raises over the limit."""
    if isinstance(value, str):
        return len(value)
    total, todo = 0, [value]
    while todo:
        one = todo.pop()
        total += len(one) if isinstance(one, str) else 8
        if isinstance(one, Mapping):
            todo += [*one.keys(), *one.values()]
        elif isinstance(one, (list, tuple)):
            total += 8 * len(one)
            todo += one if total <= MAX_CHARACTERS else ()
        if total > MAX_CHARACTERS:
            raise endless()
    return total


def weighed(value: Any) -> Any:
    """A value that was made, if it is not too large."""
    made(weight(value) if isinstance(value, (str, list, tuple, dict)) else 0)
    return value


def concat(parts: Iterable[str]) -> str:
    """The texts joined, if that is not too large."""
    held = list(parts)
    made(sum(map(len, held)))
    return "".join(held)


def joined(parts: Iterable[Any]) -> str:
    """The values as texts, joined: the `~` operator."""
    return concat([str(weighed(p)) for p in parts])


def check_replace(text: Any, old: Any, new: Any = "", count: Any = -1) -> None:
    """Before text.replace(old, new)."""
    text, old, new = str(text), str(old), str(new)
    allow(len(text) + (text.count(old) if old else len(text) + 1) * len(new))


def check_join(glue: Any, parts: Any) -> list[Any]:
    """The parts as a list, before glue.join(parts)."""
    held = list(parts)
    allow(weight(held) + len(str(glue)) * len(held))
    return held


def check_width(width: Any, lines: int = 1) -> None:
    """Before padding to a width, or by a text."""
    size = len(width) if isinstance(width, str) else abs(int(width))
    allow(size, MAX_FACTOR)
    allow(size * lines)


def check_format(pattern: str, values: Any) -> None:
    """Before filling a pattern: its widths are small, and none is taken from the values."""
    nested = ("*" in pattern and "%" in pattern) or re.search(r"\{[^{}]*\{", pattern)
    if nested or any(len(n) > 9 or int(n) > MAX_FACTOR for n in re.findall(r"\d+", pattern)):
        raise endless()
    allow(len(pattern) + (weight(values) + MAX_FACTOR) * (pattern.count("{") + pattern.count("%")))


def check_operator(operator: str, left: Any, right: Any) -> None:
    """Before left * right, left ** right, left + right and left % right."""
    bulky = [v for v in (left, right) if isinstance(v, (str, list, tuple))]
    if operator == "%" and isinstance(left, str):
        check_format(left, right)
    elif operator == "+" and bulky:
        allow(sum(map(weight, bulky)))
    elif operator in ("*", "**"):
        sizes = [len(v) if isinstance(v, (str, list, tuple)) else abs(v) for v in (left, right)]
        if operator == "**" or bulky:
            allow(max(sizes), MAX_FACTOR)
            allow(sum(map(weight, bulky)) * min(sizes))
        elif all(isinstance(v, int) for v in sizes):
            allow(sum(v.bit_length() for v in sizes), MAX_FACTOR)


# fmt: off
_TEXT = frozenset((
    "capitalize", "casefold", "count", "endswith", "find", "index", "isalnum", "isalpha", "isascii", "isdecimal",
    "isdigit", "islower", "isnumeric", "isspace", "istitle", "isupper", "lower", "lstrip", "partition",
    "removeprefix", "removesuffix", "rfind", "rindex", "rpartition", "rsplit", "rstrip", "split", "splitlines",
    "startswith", "strip", "swapcase", "title", "upper",
))
# fmt: on
_METHODS: Mapping[type, frozenset[str]] = {
    str: _TEXT,
    dict: frozenset(("get", "items", "keys", "values", "copy")),
    list: frozenset(("index", "count", "copy")),
    tuple: frozenset(("index", "count")),
    int: frozenset(("bit_length",)),
    float: frozenset(("is_integer",)),
}


def checked_call(owner: Any, name: str, args: tuple[Any, ...]) -> tuple[Any, ...]:
    """The arguments of a method of a plain value, before it is called.

    Raises:
        CheckpointError: its result would be too large, or templates have no business with this method.
    """
    tick()
    if isinstance(owner, str):
        if name in ("center", "ljust", "rjust", "zfill"):
            check_width(args[0] if args else 0)
            return args
        if name == "replace":
            check_replace(owner, *args)
            return args
        if name == "join":
            return (check_join(owner, *args),)
    kind = next(k for k in _METHODS if isinstance(owner, k))
    if name not in _METHODS[kind]:
        raise CheckpointError(f"The chat template calls {kind.__name__}.{name}, which it may not.")
    return args
