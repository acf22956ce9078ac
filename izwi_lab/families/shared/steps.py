"""The values of the step API: Prompt, Step, Session. The verbs live on each family's model.

All that changes while a model runs is in its Session; the model is immutable after load.
"""

from __future__ import annotations

import copy
import html
import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import numpy as np

from izwi_lab.backends.base import Backend, Native
from izwi_lab.errors import InvalidInputError
from izwi_lab.families.shared.chooser import Chooser
from izwi_lab.families.shared.session_file import file_path, load_session, save_session
from izwi_lab.families.shared.tally import Tally

if TYPE_CHECKING:
    from izwi_lab.families.shared.sampling import Sampling


@dataclass(frozen=True, slots=True)
class Span:
    """A named stretch of a prompt: ids[start:stop]."""

    name: str
    start: int
    stop: int


@dataclass(frozen=True, slots=True)
class Prompt:
    """What a model will read. ids: int32 [T]; `extras` holds what else a family needs (style vector, features).

    ids may be given as a list of whole numbers; anything else than whole numbers in a row raises InvalidInputError.
    """

    ids: np.ndarray
    text: str = ""
    pieces: tuple[str, ...] = ()
    spans: tuple[Span, ...] = ()
    extras: Mapping[str, Any] = field(default_factory=lambda: MappingProxyType({}))

    def __post_init__(self) -> None:
        object.__setattr__(self, "ids", _whole_ids(self.ids))

    def __len__(self) -> int:
        return int(self.ids.shape[0])

    def __repr__(self) -> str:
        shown = "|".join(self.pieces[:24]) + ("…" if len(self.pieces) > 24 else "")
        return f"Prompt({len(self)} ids, {shown or self.text[:80]!r})"


def _whole_ids(given: Any) -> np.ndarray:
    try:
        ids = np.asarray(given)
    except (TypeError, ValueError, RuntimeError):  # a ragged list, an array of another device
        ids = np.empty((), object)
    if ids.ndim == 1 and not ids.size:
        return ids.astype(np.int32)
    if ids.ndim != 1 or ids.dtype.kind not in "iu":
        raise InvalidInputError(
            f"Prompt: ids must be whole numbers [T], got {given!r:.80}.", hint="Expected a list or an int32 array."
        )
    bounds = np.iinfo(np.int32)
    if ids.min() < bounds.min or ids.max() > bounds.max:
        raise InvalidInputError(f"Prompt: ids go from {ids.min()} to {ids.max()}, which no vocabulary has.")
    return ids if isinstance(given, np.ndarray) else ids.astype(np.int32)


@dataclass(frozen=True, slots=True)
class Step:
    """What one prefill or decode gave. logits: native [V]; hidden: native [D]; seconds: host time of the step.

    text: what shows a token id as text, where the model has a tokenizer.
    """

    logits: Native
    hidden: Native
    index: int
    seconds: float
    backend: Backend
    text: Callable[[int], str] | None = field(default=None, repr=False, compare=False, kw_only=True)

    def __repr__(self) -> str:
        likely = ", ".join(f"{text or token!r} {p:.2f}" for token, text, p in self.candidates(3)) or "no finite logits"
        shapes = f"logits {list(self.logits.shape)}, hidden {list(self.hidden.shape)}"
        return f"{type(self).__name__}({self.index}: {likely}; {shapes}, {self.seconds * 1000:.1f} ms)"

    def _repr_html_(self) -> str:
        """A table of the likeliest tokens; their text is escaped."""
        if len(self.logits.shape) != 1:  # steps of speech models, which choose no token
            return f"<code>{html.escape(repr(self))}</code>"
        cell = "<td style='text-align:{}'>{}</td>"
        rows = "".join(
            "<tr>"
            + cell.format("right", token)
            + cell.format("left", f"<code>{html.escape(repr(text))}</code>" if text else "")
            + cell.format("right", f"{100 * p:.2f} %")
            + f"<td style='text-align:left'><span style='opacity:.6'>{'█' * round(20 * p)}</span></td></tr>"
            for token, text, p in self.candidates(8)
        )
        facts = f"position {self.index}, {self.seconds * 1000:.1f} ms, of {self.logits.shape[0]} tokens"
        return f"<table>{rows}</table><div style='opacity:.75;font-size:90%'>{html.escape(facts)}</div>"

    def numpy(self) -> np.ndarray:
        """The logits on the host, float32 [V]."""
        return self.backend.numpy(self.logits)

    def top(self, k: int = 10) -> list[tuple[int, float]]:
        """The k most likely (token id, probability) pairs."""
        return [(token, math.exp(logprob)) for token, logprob in self.logprobs(k)]

    def candidates(self, k: int = 10) -> list[tuple[int, str, float]]:
        """The k most likely (token id, text, probability) rows; the text is "" where there is no tokenizer."""
        text = self.text or (lambda _: "")
        return [(token, text(token), p) for token, p in self.top(k) if math.isfinite(p)]

    def logprobs(self, k: int = 10) -> list[tuple[int, float]]:
        """The k most likely (token id, natural logarithm of its probability) pairs, best first."""
        ids, logprobs, _ = Chooser(self.backend).best(self.logits, k)
        return list(zip(ids.tolist(), logprobs.tolist(), strict=True))

    def logprob(self, token: int) -> float:
        """The natural logarithm of a token's probability, by the model's own distribution."""
        size = int(self.logits.shape[0])
        if not 0 <= token < size:
            raise InvalidInputError(f"Token {token} is not in the vocabulary of {size}.")
        _, _, whole = Chooser(self.backend).best(self.logits, 1)
        return float(self.logits[token].item()) - whole


class Session:
    """All state of one generation: caches, position, random numbers, what came out so far.

    `state` is a nested dict/list of native arrays and plain values that the family's net reads and writes.
    `seed` fixes the random numbers: equal seeds give equal draws on every backend. `max_tokens`: after that many
    tokens a text session is done. `last`: the step before, for families that need not compute one after the end.
    `adopt` checks a state that was loaded from a file and gives it in the net's own form. `model`: whose session this
    is; a file of another model's is refused. `reach`: the furthest position ever written to the caches of a text
    session, which bounds how far a ring can go back. `tally`: counts of its ids, made when a penalty first needs them.
    """

    def __init__(
        self,
        backend: Backend,
        state: Any,
        *,
        seed: int | None = None,
        trim: Callable[[Session, int], None] | None = None,
        max_tokens: int | None = None,
        adopt: Callable[[Any], Any] | None = None,
        model: str = "",
    ) -> None:
        _check_whole("seed", seed, 0)
        _check_whole("max_tokens", max_tokens, 1)
        self.backend = backend
        self.state = state
        self.seed = int(np.random.SeedSequence().entropy % 2**63) if seed is None else int(seed)  # type: ignore[operator]
        self.rng = np.random.Generator(np.random.Philox(self.seed))
        self.tokens: list[int] = []
        self.prompt_ids: list[int] = []
        self.codes: Any = None
        self.position = self.reach = 0
        self.done = False
        self.finish_reason: str | None = None
        self.max_tokens = max_tokens
        self.last: Step | None = None
        self.started_s = time.perf_counter()
        self.model = model
        self.tally: Tally | None = None
        self._trim, self._adopt = trim, adopt

    def __repr__(self) -> str:
        state = f"done: {self.finish_reason}" if self.done else f"at {self.position}"
        return f"Session({state}, {len(self.tokens)} tokens, seed {self.seed}, {self.nbytes / 1e6:.1f} MB)"

    def fork(self, *, seed: int | None = None) -> Session:
        """An independent copy: both may go on from here without seeing each other.

        seed: of the copy's random numbers from here on; None goes on with the same ones.
        """
        _check_whole("seed", seed, 0)
        other = Session.__new__(Session)
        other.__dict__.update(self.__dict__)
        other.state = self.backend.copy(self.state)
        if seed is None:
            other.rng = copy.deepcopy(self.rng)
        else:
            other.seed, other.rng = int(seed), np.random.Generator(np.random.Philox(int(seed)))
        other.tokens, other.prompt_ids, other.tally = list(self.tokens), list(self.prompt_ids), None
        return other

    def trim(self, position: int) -> None:
        """Go back to `position`: later ids are forgotten. Raises where the family cannot rewind its state."""
        if self._trim is None:
            raise InvalidInputError("This family's session cannot be trimmed.", hint="Fork it before the step to undo.")
        if not isinstance(position, (int, np.integer)) or not 0 <= position <= self.position:
            raise InvalidInputError(f"trim expects a position from 0 to {self.position}, got {position!r:.80}.")
        self._trim(self, position)

    def save(self, path: str | Path) -> None:
        """Write everything to a safetensors file, from which `load` goes on exactly here, on any backend."""
        save_session(self, file_path(path))

    def load(self, path: str | Path) -> None:
        """Become the session saved at `path`; this one must come from `session()` of the same model.

        Raises:
            CheckpointError: the file is no saved session, or one of another model.
            InvalidInputError: `path` is no path of a file.
        """
        load_session(self, file_path(path), self._adopt)

    @property
    def nbytes(self) -> int:
        """Bytes of the native arrays this session holds."""
        return _nbytes(self.state)


def _check_whole(name: str, value: object, least: int) -> None:
    whole = isinstance(value, (int, np.integer)) and not isinstance(value, bool)
    if value is not None and not (whole and value >= least):  # type: ignore[operator]
        raise InvalidInputError(f"{name} must be a whole number from {least}, or None, got {value!r:.80}.")


def _nbytes(tree: Any) -> int:
    if isinstance(tree, Mapping):
        return sum(_nbytes(v) for v in tree.values())
    if isinstance(tree, (list, tuple)):
        return sum(_nbytes(v) for v in tree)
    return int(getattr(tree, "nbytes", 0))


@dataclass(frozen=True, slots=True)
class Reading:
    """Positions start .. stop of a session, read in one step with those of others. wants: the Step after the last.

    sampling: of what the model chooses by itself on the way there; see `course.Decode`.
    """

    session: Session
    start: int
    stop: int
    wants: bool = True
    sampling: Sampling | None = None
