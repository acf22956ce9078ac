"""How deep what users send may be nested: far less than Python's own recursion, which would end in no error of ours."""

from __future__ import annotations

from collections.abc import Mapping

from izwi_lab.errors import InvalidInputError

MAX_DEPTH = 100


def check_depth(what: str, value: object) -> None:
    """Raise InvalidInputError if lists and mappings in `value` lie more than MAX_DEPTH deep."""
    level, depth = [value], 0
    while level := [
        inner
        for one in level
        if isinstance(one, (Mapping, list, tuple))
        for inner in (one.values() if isinstance(one, Mapping) else one)
        if isinstance(inner, (Mapping, list, tuple))
    ]:
        depth += 1
        if depth >= MAX_DEPTH:
            raise InvalidInputError(f"{what} is nested more than {MAX_DEPTH} deep.", hint="Send it flatter.")
