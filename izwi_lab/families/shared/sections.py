"""What in a streamed answer is thought, what is said, and what is a call: told apart by tags, as the tokens come."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from enum import Enum
from typing import Any, NamedTuple


@dataclass(frozen=True, slots=True)
class Tags:
    """What opens and closes a section. The ids are those of tokenizers that have both tags as one token.

    Where they have, only these tokens are the tags: the same letters, spelt by other tokens, are plain text.
    """

    open: str
    close: str
    open_id: int | None = None
    close_id: int | None = None

    @property
    def exact(self) -> bool:
        """True if tags are told by their tokens."""
        return self.open_id is not None

    @property
    def marks(self) -> Mapping[int, str]:
        """Text of the tags by token; empty without such tokens."""
        ids = ((self.open_id, self.open), (self.close_id, self.close))
        return {i: text for i, text in ids if i is not None}


def tags_of(tokenizer: Any, opening: str, closing: str) -> Tags:
    """The tags, with their ids where a `tokenizers.Tokenizer` has both as one token."""
    ids = tokenizer.token_to_id(opening), tokenizer.token_to_id(closing)
    return Tags(opening, closing, *(ids if None not in ids else (None, None)))


class Part(Enum):
    """Kinds of text in an answer."""

    START = "start"  # nothing said yet: it may still begin with a thought
    THOUGHT = "thought"
    SAID = "said"
    CALL = "call"


Piece = tuple[Part, str]


class _Tag(NamedTuple):
    text: str
    token: int | None  # None: told by its letters
    begins: Part


class Sections:
    """Splits an answer into pieces (THOUGHT, text), (SAID, text) and (CALL, the whole body between its tags).

    Newlines around a thought, and blanks between calls, belong to the tags and are left out. verbatim: what is said is
    not touched. opened: the prompt already opened a thought. Text that may be the beginning of a tag is held back.
    """

    def __init__(
        self, thoughts: Tags | None, calls: Tags | None, *, opened: bool = False, verbatim: bool = False
    ) -> None:
        self._thoughts, self._calls, self._verbatim = thoughts, calls, verbatim
        self.part = Part.THOUGHT if opened else Part.START if thoughts is not None else Part.SAID
        self._held = ""
        self._fresh = opened  # right after a tag: newlines that come now belong to it

    def push(self, token: int, text: str) -> list[Piece]:
        """The pieces that this token settles."""
        for tag in self._awaited():
            if tag.token == token:
                pieces, self._held = self._settle(self._held, tag.begins), ""
                return pieces
        self._held += text
        return [*self._spelt_tags(), *self._release()]

    def flush(self) -> list[Piece]:
        """What was held back, once no more comes. A call without its closing tag comes as (CALL, body)."""
        kind, held = self._kind(), self._held
        self._held = ""
        if kind is Part.CALL:
            self.part = Part.SAID
            return [(kind, held)]
        held = held.rstrip("\n") if kind is Part.THOUGHT else held
        return [(kind, held)] if held else []

    @property
    def drops_newlines(self) -> bool:
        """True after the end of a thought or call, while newlines that come belong to its tag."""
        return self._fresh and not self._verbatim and self.part is Part.SAID

    def _kind(self) -> Part:
        return Part.SAID if self.part is Part.START else self.part

    def _awaited(self) -> Iterator[_Tag]:
        """Tags that may come now."""
        if self.part is Part.THOUGHT and self._thoughts is not None:
            yield _Tag(self._thoughts.close, self._thoughts.close_id, Part.SAID)
        elif self.part is Part.CALL and self._calls is not None:
            yield _Tag(self._calls.close, self._calls.close_id, Part.SAID)
        else:
            if self.part is Part.START and self._thoughts is not None:
                yield _Tag(self._thoughts.open, self._thoughts.open_id, Part.THOUGHT)
            if self._calls is not None:
                yield _Tag(self._calls.open, self._calls.open_id, Part.CALL)

    def _spelt_tags(self) -> Iterator[Piece]:
        while True:
            places = [(self._held.find(t.text), t) for t in self._awaited() if t.token is None]
            at, tag = min((p for p in places if p[0] >= 0 and self._fits(*p)), default=(-1, None))
            if tag is None:
                return
            before, rest = self._held[:at], self._held[at + len(tag.text) :]
            yield from self._settle(before, tag.begins)
            self._held = rest

    def _fits(self, at: int, tag: _Tag) -> bool:
        return tag.begins is not Part.THOUGHT or not self._held[:at].strip()  # only blanks come before a thought

    def _settle(self, before: str, begins: Part) -> list[Piece]:
        """The text before the tag at which `begins` begins."""
        kind = self._kind()
        if kind is Part.THOUGHT:
            before = (before.lstrip("\n") if self._fresh else before).rstrip("\n")
        elif kind is Part.SAID and not self._verbatim:
            before = "" if begins is Part.THOUGHT else (before.lstrip("\n") if self._fresh else before).rstrip()
        self.part, self._fresh = begins, True
        return [(kind, before)] if before or kind is Part.CALL else []

    def _release(self) -> Iterator[Piece]:
        """Let go of what can be neither part of a tag nor the newlines before one."""
        if self.part is Part.CALL:
            return
        strips = self.part is Part.THOUGHT or not self._verbatim
        if self._fresh and strips:
            self._held = self._held.lstrip("\n")
            self._fresh = not self._held
        free = len(self._held) - max(
            (_beginning(self._held, t.text) for t in self._awaited() if t.token is None), default=0
        )
        if self.part is Part.START:
            if not self._held[:free].strip():
                return
            self.part = Part.SAID
        out = self._held[:free]
        if self.part is Part.THOUGHT:
            out = out.rstrip("\n")
        elif strips and self._calls is not None:
            out = out.rstrip()
        if out:
            self._held = self._held[len(out) :]
            yield self._kind(), out


def _beginning(text: str, tag: str) -> int:
    """How many of the last characters may be the beginning of `tag`."""
    return next((n for n in range(min(len(tag) - 1, len(text)), 0, -1) if tag.startswith(text[-n:])), 0)
