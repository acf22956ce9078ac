"""Tokens to text as they come: whole characters only, each token looked at once. And stop strings over a stream."""

from __future__ import annotations

import codecs
import json
import re
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any

CONTROL_SHAPE = re.compile(r"<.+>|\[.+\]", re.DOTALL)  # names of tokens that are marks, such as <think>

_BYTE_TOKEN = re.compile(r"<0x([0-9A-Fa-f]{2})>")


def _byte_of_character() -> dict[str, int]:
    """GPT-2's printable stand-ins for bytes (openai/gpt-2 encoder.py)."""
    shown = [*range(33, 127), *range(161, 173), *range(174, 256)]
    table = {chr(b): b for b in shown}
    table.update({chr(256 + i): b for i, b in enumerate(b for b in range(256) if b not in set(shown))})
    return table


_BYTES = _byte_of_character()


class TokenBytes:
    """The bytes each token stands for. Special tokens stand for none.

    control: special tokens and others that look like marks, with their names by id.
    """

    def __init__(self, tokenizer: Any) -> None:
        """Learn the kind of a `tokenizers.Tokenizer`: byte-level BPE, or SentencePiece with byte fallback."""
        decoder = tokenizer.decoder
        self._state = json.dumps(json.loads(decoder.__getstate__())) if decoder is not None else ""
        self._byte_level = '"ByteLevel"' in self._state
        self.strips_first_space = '"Strip"' in self._state
        self._tokenizer = tokenizer
        added = tokenizer.get_added_tokens_decoder()
        self._cache: dict[int, bytes] = {i: b"" if t.special else t.content.encode() for i, t in added.items()}
        self.control: Mapping[int, str] = MappingProxyType(
            {i: t.content for i, t in added.items() if t.special or CONTROL_SHAPE.fullmatch(t.content)}
        )

    def __call__(self, token: int) -> bytes:
        """The bytes of a token id; none for ids the tokenizer does not know."""
        known = self._cache.get(token)
        if known is None:
            known = self._cache[token] = self._bytes(self._tokenizer.id_to_token(token) or "")
        return known

    def _bytes(self, piece: str) -> bytes:
        if self._byte_level:
            return bytes(_BYTES[c] for c in piece) if all(c in _BYTES for c in piece) else piece.encode()
        if byte := _BYTE_TOKEN.fullmatch(piece):
            return bytes([int(byte[1], 16)])
        return piece.replace("\u2581", " ").encode()


class Detokenizer:
    """Text of a growing list of tokens.

    A character split over tokens appears with its last byte; bytes that can be no character appear as U+FFFD.
    What is incomplete when the stream ends is dropped. keep_space: the first token's leading space is text, where the
    tokenizer would strip it.
    """

    def __init__(self, token_bytes: TokenBytes, *, keep_space: bool = False) -> None:
        self._bytes = token_bytes
        self._utf8 = codecs.getincrementaldecoder("utf-8")("replace")
        self._at_start = token_bytes.strips_first_space and not keep_space

    def push(self, token: int) -> str:
        """The characters that this token completes."""
        text = self._utf8.decode(self._bytes(token))
        if self._at_start and text:
            self._at_start = False
            text = text.removeprefix(" ")
        return text


def detokenize(token_bytes: TokenBytes, tokens: Sequence[int]) -> str:
    """The text of all tokens: what a Detokenizer gives, joined."""
    one = Detokenizer(token_bytes)
    return "".join(one.push(int(t)) for t in tokens)


class StopStrings:
    """Cuts a stream of text at the first stop string, also one that spans several pieces.

    Text that may be the beginning of a stop string is held back until it is decided.
    """

    def __init__(self, stop: Sequence[str]) -> None:
        self._stop = tuple(s for s in stop if s)
        self._longest = max((len(s) for s in self._stop), default=0)
        self._held = ""
        self.found: str | None = None

    def push(self, text: str) -> str:
        """The text that is safe to show; "" after a stop string was found."""
        if self.found is not None:
            return ""
        if not self._stop:
            return text
        self._held += text
        places = [(at, s) for s in self._stop if (at := self._held.find(s)) >= 0]
        if places:
            at, self.found = min(places, key=lambda p: p[0])
            out, self._held = self._held[:at], ""
            return out
        keep = next((n for n in range(min(self._longest - 1, len(self._held)), 0, -1) if self._may_begin(n)), 0)
        out = self._held[: len(self._held) - keep]
        self._held = self._held[len(self._held) - keep :]
        return out

    def _may_begin(self, count: int) -> bool:
        tail = self._held[-count:]
        return any(s.startswith(tail) for s in self._stop)

    def flush(self) -> str:
        """What was held back, once no more text comes."""
        out, self._held = self._held, ""
        return out
