"""Admission: how many may wait. A full queue says so at once, and when to come again."""

from __future__ import annotations

import threading
from collections import Counter, deque
from dataclasses import dataclass

from izwi_lab.errors import InvalidInputError, QueueFullError

_SOONEST_S, _LATEST_S = 0.1, 60.0
_UNMEASURED_S = 1.0  # when nothing has left the queue yet
_MEASURED = 64  # departures that the throughput is taken from


@dataclass(frozen=True, slots=True, kw_only=True)
class QueueLimits:
    """How many requests and tokens of prompts may wait, of an engine and of one tenant. None: as many as of all.

    Raises:
        InvalidInputError: a limit below 1.
    """

    requests: int = 256
    prompt_tokens: int = 262_144
    tenant_requests: int | None = None
    tenant_prompt_tokens: int | None = None

    def __post_init__(self) -> None:
        for name in self.__slots__:
            value = getattr(self, name)
            optional = value is None and name.startswith("tenant_")
            if not optional and (type(value) is not int or value < 1):
                raise InvalidInputError(f"QueueLimits: {name} must be a whole number from 1, got {value!r:.80}.")


@dataclass(frozen=True, slots=True, eq=False)
class Ticket:
    """A place in the queue."""

    tenant: str
    prompt_tokens: int


class Admission:
    """The door of an engine: who is let in holds a ticket until its sequence starts or ends.

    How long others should stay away is estimated from how fast tickets come back while somebody waits. Safe to use
    from many threads; `now` is any clock that does not go back.

    >>> door = Admission(QueueLimits(requests=1))
    >>> ticket = door.admit("ada", 100, now=0.0)
    >>> door.admit("bob", 10, now=0.0)
    Traceback (most recent call last):
    izwi_lab.errors.QueueFullError: The queue is full: 1 of 1 requests wait. Try again in 1.0 s.
    >>> door.leave(ticket, now=0.5)
    """

    def __init__(self, limits: QueueLimits | None = None) -> None:
        self.limits = limits or QueueLimits()
        self._lock = threading.Lock()
        self._inside: set[Ticket] = set()
        self._requests: Counter[str] = Counter()  # by tenant; the tenants without any are not in it
        self._tokens: Counter[str] = Counter()
        self._departures: deque[tuple[float, int]] = deque(maxlen=_MEASURED)  # seconds of waiting for it, tokens
        self._waiting_since_s = 0.0

    def __len__(self) -> int:
        """Requests that wait."""
        return len(self._inside)

    def __repr__(self) -> str:
        return f"Admission({len(self)} of {self.limits.requests} requests, {self.prompt_tokens} tokens wait)"

    @property
    def prompt_tokens(self) -> int:
        """Tokens of the prompts that wait."""
        with self._lock:
            return self._tokens.total()

    @property
    def tenants(self) -> dict[str, int]:
        """Requests that wait, by tenant."""
        with self._lock:
            return dict(self._requests)

    def admit(self, tenant: str, prompt_tokens: int, *, now: float) -> Ticket:
        """A place for a request, to be given back with `leave`.

        Raises:
            QueueFullError: there is no place now; `retry_after_s` says when there should be one.
            InvalidInputError: the prompt is longer than the queue, so that there never will be.
        """
        if type(prompt_tokens) is not int or prompt_tokens < 0:
            raise InvalidInputError(f"prompt_tokens must be a whole number of 0 or more, got {prompt_tokens!r:.80}.")
        with self._lock:
            for whose, requests, tokens, share in self._gates(tenant):
                self._pass(whose, requests, tokens, share, prompt_tokens, now)
            if not self._inside:
                self._waiting_since_s = now
            ticket = Ticket(tenant, prompt_tokens)
            self._inside.add(ticket)
            self._requests[tenant] += 1
            self._tokens[tenant] += prompt_tokens
            return ticket

    def leave(self, ticket: Ticket, *, now: float, started: bool = True) -> None:
        """Give a place back, once: more than once does nothing. started: False if it gave up before its turn."""
        with self._lock:
            if ticket not in self._inside:
                return
            self._inside.remove(ticket)
            self._requests[ticket.tenant] -= 1
            self._tokens[ticket.tenant] -= ticket.prompt_tokens
            if not self._requests[ticket.tenant]:
                del self._requests[ticket.tenant], self._tokens[ticket.tenant]
            if started:
                self._departures.append((now - self._waiting_since_s, ticket.prompt_tokens))
                self._waiting_since_s = now

    def _gates(self, tenant: str) -> list[tuple[str, tuple[int, int], tuple[int, int], float]]:
        """Whose queue, its requests and their limit, its tokens and theirs, and its share of all that leaves."""
        limits, requests, tokens = self.limits, self._requests.total(), self._tokens.total()
        own, own_tokens = self._requests.get(tenant, 0), self._tokens.get(tenant, 0)
        most = limits.requests if limits.tenant_requests is None else limits.tenant_requests
        most_tokens = limits.prompt_tokens if limits.tenant_prompt_tokens is None else limits.tenant_prompt_tokens
        share = own / requests if requests else 1.0
        return [
            ("The queue", (requests, limits.requests), (tokens, limits.prompt_tokens), 1.0),
            ("Your part of the queue", (own, most), (own_tokens, most_tokens), share),
        ]

    def _pass(
        self, whose: str, requests: tuple[int, int], tokens: tuple[int, int], share: float, more: int, now: float
    ) -> None:
        """Raise unless one more request of `more` tokens is within the limits."""
        (waiting, most), (waiting_tokens, most_tokens) = requests, tokens
        if more > most_tokens:
            raise InvalidInputError(
                f"A prompt of {more} tokens is longer than {whose[0].lower()}{whose[1:]}, of {most_tokens}.",
                hint="Shorten it, or raise the limits of the engine's queue.",
            )
        over, over_tokens = waiting + 1 - most, waiting_tokens + more - most_tokens
        if over <= 0 and over_tokens <= 0:
            return
        retry_s = self._wait_s(over / share if share else over, over_tokens / share if share else over_tokens, now)
        full = f"{waiting} of {most} requests" if over > 0 else f"{waiting_tokens} of {most_tokens} tokens of prompts"
        raise QueueFullError(
            f"{whose} is full: {full} wait.", retry_after_s=retry_s, hint=f"Try again in {retry_s:.1f} s."
        )

    def _wait_s(self, requests: float, tokens: float, now: float) -> float:
        """Seconds until so many requests and tokens have left, at the pace of the last ones."""
        if not self._departures:
            return _UNMEASURED_S
        left_tokens = sum(count for _, count in self._departures)
        seconds = sum(waited for waited, _ in self._departures) + max(0.0, now - self._waiting_since_s)
        needed = [max(0.0, requests) / len(self._departures)]
        needed += [max(0.0, tokens) / left_tokens] if left_tokens else []
        return min(_LATEST_S, max(_SOONEST_S, seconds * max(needed)))
