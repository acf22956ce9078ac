"""Request and Sequence: what a caller asks of one model, and its life in the engine."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from enum import Enum, IntEnum, StrEnum

from izwi_lab.engine.chain import Scope
from izwi_lab.engine.tables import BlockTable
from izwi_lab.errors import InvalidInputError

_ID_BOUND = 2**63  # digests are taken of 64-bit numbers


class Priority(IntEnum):
    """How urgent a request is. What a level is worth is `Limits.ageing_s` seconds of waiting."""

    LOW = 0
    NORMAL = 1
    HIGH = 2
    CRITICAL = 3


class Sharing(Enum):
    """Which positions of a sequence may be taken from, and left in, the prefix cache.

    NOTHING: for answers that must not depend on how their prompt was read (sampled, with a seed). PROMPT: where a token
    alone does not say what was read at its position (a frame of speech is more than its first code). ALL: text.
    """

    NOTHING = "nothing"
    PROMPT = "prompt"
    ALL = "all"


class State(Enum):
    """Where a sequence is: in the queue, in the caches, or at its end."""

    WAITING = "waiting"
    RUNNING = "running"
    FINISHED = "finished"


class FinishReason(StrEnum):
    """Why a sequence ended."""

    STOP = "stop"
    LENGTH = "length"
    CANCELLED = "cancelled"
    TIMEOUT = "timeout"
    ERROR = "error"


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """What a caller asks of one model.

    id: unique among those under way. prompt: token ids, at least one. max_new_tokens: the answer is cut there.
    tenant: whose it is; no tenant is ever given blocks that another's tokens filled. extra_key: what the meaning of the
    prompt depends on besides its ids (a voice, an image), as bytes that differ where it differs.
    arrival_s, deadline_s: seconds on the clock that the scheduler is driven by; None: no deadline.

    Raises:
        InvalidInputError: an empty prompt or id, ids that are no 64-bit whole numbers, no room for an answer.
    """

    id: str
    prompt: tuple[int, ...]
    max_new_tokens: int
    arrival_s: float
    model: str = ""
    tenant: str = ""
    extra_key: bytes = b""
    priority: Priority = Priority.NORMAL
    deadline_s: float | None = None
    sharing: Sharing = Sharing.ALL

    def __post_init__(self) -> None:
        if not self.id:
            raise InvalidInputError("A request needs an id.", hint="Any text that no other request under way has.")
        if not isinstance(self.prompt, tuple) or not all(type(token) is int for token in self.prompt):
            raise InvalidInputError(
                f"Request {self.id!r}: prompt must be a tuple of whole numbers, got {self.prompt!r:.80}.",
                hint="Expected tuple(prompt.ids.tolist()).",
            )
        if not self.prompt:
            raise InvalidInputError(f"Request {self.id!r}: the prompt is empty.", hint="Give it one token at least.")
        if min(self.prompt) < -_ID_BOUND or max(self.prompt) >= _ID_BOUND:
            raise InvalidInputError(f"Request {self.id!r}: a token id does not fit 64 bits, which no vocabulary has.")
        if type(self.max_new_tokens) is not int or self.max_new_tokens < 1:
            raise InvalidInputError(
                f"Request {self.id!r}: max_new_tokens must be a whole number from 1, got {self.max_new_tokens!r:.80}."
            )
        if self.priority not in list(Priority):
            raise InvalidInputError(
                f"Request {self.id!r}: priority {self.priority!r:.80} is unknown.",
                hint=f"One of {[p.name for p in Priority]}.",
            )
        object.__setattr__(self, "priority", Priority(self.priority))
        for name, moment in (("arrival_s", self.arrival_s), ("deadline_s", self.deadline_s)):
            if moment is not None and not math.isfinite(moment):
                raise InvalidInputError(f"Request {self.id!r}: {name} must be finite, got {moment!r}.")

    @property
    def scope(self) -> Scope:
        """Who may share this request's blocks."""
        return Scope(self.model, self.tenant, self.extra_key)

    @property
    def shared_tokens(self) -> int | None:
        """How many first positions may be shared; None: all."""
        return {Sharing.NOTHING: 0, Sharing.PROMPT: len(self.prompt), Sharing.ALL: None}[self.sharing]

    @property
    def positions(self) -> int:
        """The most positions that it ever keeps in the caches: the last token of an answer is never computed."""
        return len(self.prompt) + self.max_new_tokens - 1


@dataclass(slots=True, eq=False)
class Sequence:
    """The life of a request. The scheduler writes it, everybody else only reads.

    tokens: the prompt and the output so far. computed: how many of them are in the caches, from the first on.
    rank: its place in the order of service, smaller first; it never changes, so no two sequences can pass each other
    by turns. cached: tokens that it took from the caches of others, before it was first preempted.
    started_s, first_token_s, last_token_s, ended_s: None until then; token_gap_s: seconds between the last two tokens.
    A preempted sequence keeps its tokens and has none computed.
    """

    request: Request
    rank: tuple[float, int]
    table: BlockTable
    tokens: list[int]
    computed: int = 0
    cached: int = 0
    state: State = State.WAITING
    finish: FinishReason | None = None
    error: BaseException | None = field(default=None, repr=False)
    preemptions: int = 0
    last_step: int = -1
    started_s: float | None = None
    first_token_s: float | None = None
    last_token_s: float | None = None
    token_gap_s: float | None = None
    ended_s: float | None = None
    stopping: bool = False

    @property
    def id(self) -> str:
        """The request's id."""
        return self.request.id

    @property
    def output(self) -> tuple[int, ...]:
        """The tokens of the answer so far."""
        return tuple(self.tokens[len(self.request.prompt) :])

    @property
    def said(self) -> int:
        """How many tokens the answer has so far."""
        return len(self.tokens) - len(self.request.prompt)

    @property
    def remaining(self) -> int:
        """How many tokens are still to be computed before the next one can be chosen."""
        return len(self.tokens) - self.computed

    @property
    def decoding(self) -> bool:
        """True where only the token chosen last is to be computed; all else is prefill, recomputing included."""
        return self.remaining == 1 and self.said > 0

    def __repr__(self) -> str:
        end = f" ({self.finish})" if self.finish else ""
        return f"Sequence({self.id!r}, {self.state.value}{end}, {self.computed} of {len(self.tokens)} computed)"
