"""What a Whisper does for many requests at once: encoding their windows, and the steps of all that are decoded.

An item is the list of what one request asks for, and its part of the answer a list as long; its weight is that length.
| kind | of an item | of its answer |
|---|---|---|
| encode | features [M, frames] | states, native [F, D] |
| prefill | (session, prompt) | Step |
| decode | (session, token) | Step |
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from izwi_lab.errors import InvalidInputError
from izwi_lab.families.shared.blame import tried

if TYPE_CHECKING:
    from izwi_lab.families.whisper.model import WhisperModel

# A CPU is as busy with the 1500 states of one window as with those of many; one at a time lets others in between and
# rounds as it does alone. A decoder's step reads all of its weights for a single row, which is worth sharing anywhere:
# Whisper-base makes 2.9 times as many tokens a second in steps of 16 windows on two cores, and no more beyond.
_LIMITS = {"encode": 8, "prefill": 16, "decode": 32}
_CPU_LIMITS = {"encode": 1, "prefill": 8, "decode": 16}


def limit(device: str, kind: str) -> int:
    """Windows that are worth one pass. Raises InvalidInputError for a kind that is not shared."""
    limits = _CPU_LIMITS if device == "cpu" else _LIMITS
    if kind not in limits:
        raise InvalidInputError(f"Whisper does not share {kind!r}.", hint=f"It shares {', '.join(limits)}.")
    return limits[kind]


def share(model: WhisperModel, kind: str, items: Sequence[Sequence[Any]]) -> list[Any]:
    """Each item's part of what is done for all, or the Exception that one of its windows met."""
    rows = [row for item in items for row in item]
    if kind == "encode":
        met = _grouped(rows, lambda mel: tuple(mel.shape), lambda group: _encode(model, group))
    elif kind == "prefill":
        met = _grouped(rows, lambda row: len(row[1]), lambda group: model.prefill_many(*_columns(group)))
    else:
        limit(model.backend.device, kind)
        met = tried(rows, lambda group: model.decode_many(*_columns(group)))
    out: list[Any] = []
    for item in items:
        own, met = met[: len(item)], met[len(item) :]
        out.append(next((found for found in own if isinstance(found, Exception)), own))
    return out


def _encode(model: WhisperModel, group: list[Any]) -> list[Any]:
    return [model.encode(group[0])] if len(group) == 1 else model.encode_many(group)


def _columns(rows: Sequence[tuple[Any, Any]]) -> tuple[list[Any], list[Any]]:
    return [first for first, _ in rows], [second for _, second in rows]


def _grouped(rows: Sequence[Any], kind: Callable[[Any], Any], run: Callable[[list[Any]], Sequence[Any]]) -> list[Any]:
    """`tried` for the rows of each kind, which alone can be computed together; the answers in the rows' order."""
    kinds = [kind(row) for row in rows]
    met: dict[int, Any] = {}
    for one in dict.fromkeys(kinds):
        chosen = [n for n, other in enumerate(kinds) if other == one]
        met.update(zip(chosen, tried([rows[n] for n in chosen], run), strict=True))
    return [met[n] for n in range(len(rows))]
