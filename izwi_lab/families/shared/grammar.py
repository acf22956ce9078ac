"""Answers held to a JSON schema, a regular expression or a call form, by llguidance (MIT, guidance-ai/llguidance).

The grammar works on the bytes of tokens, those that the detokenizer shows, so that what it allows is what is read.
Control tokens are never allowed but where a grammar names them; the end token exactly where the text is complete.
"""

from __future__ import annotations

import json
import re
import threading
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

import numpy as np

from izwi_lab.errors import InvalidInputError, MissingExtraError

if TYPE_CHECKING:
    from izwi_lab.families.shared.detokenizer import TokenBytes
    from izwi_lab.families.shared.text_processor import TextProcessor

FORMATS = ("text", "json_object", "json_schema", "regex")
MAX_GRAMMAR = 256 * 1024  # characters: a schema of this size takes a second or two to prepare
_BLANKS = r"[\x20\x0A\x0D\x09]{1,24}"  # between JSON tokens: bounded, or a small model may go on with blanks for ever
_SCHEMA_KEYS = frozenset(("name", "schema", "strict", "description"))
_TRIED = 4  # tokens: a pattern too big for the library is found out by its first ones, not when it is compiled

_lock = threading.Lock()
_tokenizers: WeakKeyDictionary[TokenBytes, dict[tuple[int, tuple[int, ...]], Any]] = WeakKeyDictionary()


def grammar_kind(response_format: Mapping[str, Any]) -> str | None:
    """The type of an OpenAI response_format; None for {"type": "text"}, which holds the answer to nothing.

    Raises:
        InvalidInputError: the value has not the form that `ChatOptions` describes.
    """
    kind = response_format.get("type")
    if kind == "json_schema":
        _schema_of(response_format.get("json_schema"))
    elif kind == "regex":
        pattern = response_format.get("regex")
        if not isinstance(pattern, str) or not pattern:
            raise InvalidInputError(f"response_format: regex must be a pattern, got {pattern!r:.80}.")
    elif kind not in FORMATS:
        raise InvalidInputError(
            f"response_format has the type {kind!r:.80}.", hint=f"Expected one of {', '.join(FORMATS)}."
        )
    return None if kind == "text" else str(kind)


def grammar_of(response_format: Mapping[str, Any]) -> str | None:
    r"""The llguidance grammar of an OpenAI response_format; None for {"type": "text"}. `Grammar` checks it.

    A pattern is in the syntax of Rust's regex crate, without look-around, matches from end to end, and \d is 0 to 9.

    Raises:
        InvalidInputError: the value has not the form that `ChatOptions` describes, or is too large.
        MissingExtraError: llguidance is not installed.
    """
    kind = grammar_kind(response_format)
    if kind == "regex":
        pattern = response_format["regex"]
        # Without this \d also draws digits of all scripts, more of them than Python's `re` knows.
        ascii_digits = _library().regex_to_lark(pattern, "d")
        return _bounded(json.dumps({"grammars": [{"lark_grammar": f"start: /{ascii_digits}/"}]}), "pattern")
    if kind == "json_schema":
        return _schema_grammar(_schema_of(response_format["json_schema"]))
    return _schema_grammar({"type": "object"}) if kind == "json_object" else None


def _schema_of(given: Any) -> Any:
    if not isinstance(given, Mapping) or not isinstance(given.get("schema"), (Mapping, bool)):
        raise InvalidInputError(
            f"response_format: json_schema must hold a schema, got {given!r:.80}.",
            hint='Expected {"type": "json_schema", "json_schema": {"name": ..., "schema": {...}}}.',
        )
    if unknown := sorted(map(str, set(given) - _SCHEMA_KEYS)):
        raise InvalidInputError(f"response_format: json_schema holds {unknown}, expected {sorted(_SCHEMA_KEYS)}.")
    if given["schema"] is False:
        raise InvalidInputError("response_format: the schema is False, which nothing satisfies.", hint="Give another.")
    return given["schema"]


def _schema_grammar(schema: Any) -> str:
    options = {"whitespace_pattern": _BLANKS}
    told = {**({} if schema is True else schema), "x-guidance": options}
    try:
        grammar = json.dumps({"grammars": [{"json_schema": told}]})
    except (TypeError, ValueError, RecursionError) as error:
        raise InvalidInputError(f"response_format: the schema is not JSON: {error}.") from None
    return _bounded(grammar, "schema")


def _bounded(grammar: str, what: str) -> str:
    if len(grammar) > MAX_GRAMMAR:
        raise InvalidInputError(
            f"The {what} has {len(grammar)} characters, more than {MAX_GRAMMAR}.", hint="Give a smaller one."
        )
    return grammar


def _library() -> Any:
    try:
        import llguidance
    except ImportError:
        raise MissingExtraError("llguidance", "grammar") from None
    return llguidance


class Grammar:
    """A Constraint: one answer that follows a grammar.

    Raises:
        InvalidInputError: the grammar is malformed, too large, or nothing satisfies it.
        MissingExtraError: llguidance is not installed.
    """

    def __init__(self, grammar: str, processor: TextProcessor, vocab: int) -> None:
        library = _library()
        self._words = -(-vocab // 32)
        limits = library.LLParserLimits(verbose_errors=False)
        bounded = _bounded(grammar, "grammar")
        self._matcher = library.LLMatcher(_tokenizer(processor, vocab), bounded, log_level=0, limits=limits)
        self._check("The grammar cannot be used")
        self._next: np.ndarray | None = self._mask()
        self._try(self._next, processor.stop_ids)

    @property
    def finished(self) -> bool:
        """True when the text is complete and nothing more may follow."""
        return bool(self._matcher.is_stopped() and self._matcher.is_accepting())

    def mask(self) -> np.ndarray:
        """See Constraint."""
        if self._next is None:
            self._next = self._mask()
        return self._next

    def accept(self, token: int) -> None:
        """See Constraint. A token that the mask forbids raises InvalidInputError."""
        self._next = None
        self._matcher.consume_token(token)
        self._check(f"Token {token} does not follow the grammar")

    def _mask(self) -> np.ndarray:
        mask = np.frombuffer(self._matcher.compute_bitmask(), np.int32)[: self._words]
        self._check("Nothing satisfies the grammar")
        if not mask.any():
            raise InvalidInputError("Nothing satisfies the grammar: no token may come next.")
        return mask

    def _try(self, mask: np.ndarray, stops: frozenset[int]) -> None:
        """Take a few tokens on a copy: the first that each mask allows, which are rarely blanks."""
        trial = self._matcher.deep_copy()
        for _ in range(_TRIED):
            bits = np.unpackbits(mask.view(np.uint8), bitorder="little")
            token = next((int(t) for t in np.flatnonzero(bits) if int(t) not in stops), None)
            if token is None:
                return
            trial.consume_token(token)
            mask = np.frombuffer(trial.compute_bitmask(), np.int32)[: self._words]
            if trial.is_error():
                raise _unusable("The grammar cannot be used", trial.get_error())

    def _check(self, what: str) -> None:
        if self._matcher.is_error():
            raise _unusable(what, self._matcher.get_error())


def _unusable(what: str, error: str) -> InvalidInputError:
    """The library's error in words of ours where it is one that users meet."""
    reason = " ".join(error.partition("<state>")[0].partition("<non-verbose/>")[0].split())[:400].rstrip(".")
    if "too many expressions" in reason or "initial lexer configuration" in reason:
        return InvalidInputError(f"{what}: the pattern is too big.", hint="Repeat less, or bound lengths lower.")
    if keys := re.fullmatch(r"Unimplemented keys: \[(.*)\]", reason):
        return InvalidInputError(
            f"{what}: the schema says {keys[1]}, which no answer can be held to here.",
            hint="Leave it out, or say it by what is allowed: type, enum, const, properties, anyOf.",
        )
    return InvalidInputError(f"{what}: {reason}.", hint="Change the schema or the pattern.")


def _tokenizer(processor: TextProcessor, vocab: int) -> Any:
    """The library's view of a tokenizer; made once for each, which takes up to a second."""
    stops = tuple(sorted(processor.stop_ids))
    with _lock:
        made = _tokenizers.setdefault(processor.token_bytes, {})
        if (vocab, stops) not in made:
            made[vocab, stops] = _library().LLTokenizer(
                _Table(processor, vocab), n_vocab=vocab + 1, eos_token=list(stops) or [vocab]
            )
        return made[vocab, stops]


class _Table:
    """What llguidance asks of a tokenizer. An id past the vocabulary stands in for a missing end token."""

    is_tokenizer_wrapper = True

    def __init__(self, processor: TextProcessor, vocab: int) -> None:
        control = processor.token_bytes.control
        self._encoder = processor.encoder
        self.bos_token_id = None
        self.eos_token_id = min(processor.stop_ids, default=vocab)
        names = {i: control[i].encode() for i in control if i < vocab}
        self.tokens = [names[i] if i in names else processor.token_bytes(i) for i in range(vocab)] + [b"<end>"]
        self.special_token_ids = sorted({*names, *(i for i in processor.stop_ids if i < vocab), vocab})

    def __call__(self, text: str | bytes) -> list[int]:
        """Ids of a text: which of several spellings is the tokenizer's own. Control tokens in it are letters."""
        return self._encoder.letters(text if isinstance(text, str) else text.decode(errors="replace"))
