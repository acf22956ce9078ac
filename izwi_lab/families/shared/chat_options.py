"""How an answer is asked for: every option of `generate`, `stream` and `chat` as one checked value."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from numbers import Integral
from typing import TYPE_CHECKING, Any

from izwi_lab.errors import InvalidInputError
from izwi_lab.families.shared.nesting import check_depth

if TYPE_CHECKING:
    from izwi_lab.families.shared.sampling import Sampling
    from izwi_lab.families.shared.speculative import Drafts

TRUNCATIONS = ("error", "oldest")
TOOL_CHOICES = ("auto", "none", "required")
MAX_LOGPROBS = 20
_FUNCTION_NAME = re.compile(r"[A-Za-z0-9_.-]{1,64}")


@dataclass(frozen=True, slots=True, kw_only=True)
class ChatOptions:
    """Options of one answer.

    sampling: None is greedy. seed: fixes the random numbers; a sampled answer with a seed takes nothing from a prompt
    cache, so that the same call gives the same answer on the same machine. stop: texts that end it; looked for in what
    is said, not in thoughts or calls. thinking: True or False asks the template for it, None leaves the checkpoint's
    default. tools: JSON-schema function descriptions as OpenAI takes them. tool_choice: "auto", "none" (the model is
    not told of them), "required" (one call or more), or {"type": "function", "function": {"name": ...}} (one call of
    it). response_format: {"type": "json_object"}, {"type": "json_schema", "json_schema": {"schema": ...}}, {"type":
    "regex", "regex": ...} or {"type": "text"}; an answer that ended by "stop" satisfies it. logprobs: None, or how many
    of the likeliest tokens to show beside each token (0 to 20). truncation: what happens to a prompt longer than the
    context: "error", or "oldest" (whole turns are left out from the oldest on; system and last turn stay). speculative:
    guesses that the model checks many at a time; the answer's distribution is the same.

    Raises:
        InvalidInputError: a value of the wrong kind or range, or two options that exclude each other.
    """

    sampling: Sampling | None = None
    max_tokens: int = 512
    stop: Sequence[str] = ()
    seed: int | None = None
    thinking: bool | None = None
    tools: Sequence[Mapping[str, Any]] = ()
    tool_choice: str | Mapping[str, Any] = "auto"
    response_format: Mapping[str, Any] | None = None
    logprobs: int | None = None
    truncation: str = "error"
    speculative: Drafts | None = None

    def __post_init__(self) -> None:
        self._check_numbers()
        self._check_words()
        names = _function_names(self.tools)
        choice = self.tool_choice
        if isinstance(choice, Mapping):
            function = choice.get("function")
            name = function.get("name") if isinstance(function, Mapping) else None
            if choice.get("type", "function") != "function" or name not in names:
                raise InvalidInputError(
                    f"tool_choice must name one of the tools {names}, got {choice!r:.200}.",
                    hint='Expected {"type": "function", "function": {"name": ...}}.',
                )
        elif choice not in TOOL_CHOICES:
            raise InvalidInputError(f"tool_choice must be one of {', '.join(TOOL_CHOICES)}, got {choice!r:.80}.")
        elif choice == "required" and not names:
            raise InvalidInputError("tool_choice is 'required' but there are no tools.", hint="Give tools=[...].")
        self._check_together()

    def _check_numbers(self) -> None:
        if not _whole(self.max_tokens) or self.max_tokens < 1:
            raise InvalidInputError(f"max_tokens must be a whole number of at least 1, got {self.max_tokens!r}.")
        if self.seed is not None and (not _whole(self.seed) or self.seed < 0):
            raise InvalidInputError(f"seed must be a whole number of 0 or more, or None, got {self.seed!r}.")
        if self.logprobs is not None and not (_whole(self.logprobs) and 0 <= self.logprobs <= MAX_LOGPROBS):
            raise InvalidInputError(
                f"logprobs must be a whole number from 0 to {MAX_LOGPROBS}, or None, got {self.logprobs!r}."
            )
        if not _flag(self.thinking):
            raise InvalidInputError(f"thinking must be True, False or None, got {self.thinking!r}.")

    def _check_words(self) -> None:
        from izwi_lab.families.shared.sampling import Sampling
        from izwi_lab.families.shared.speculative import DraftModel, PromptLookup

        if self.sampling is not None and not isinstance(self.sampling, Sampling):
            raise InvalidInputError(f"sampling must be a Sampling or None, got {self.sampling!r:.80}.")
        if isinstance(self.stop, str):
            raise InvalidInputError(
                f"stop takes a list of texts, got {self.stop!r}.", hint=f"Expected stop=[{self.stop!r}]."
            )
        if not isinstance(self.stop, Sequence) or not all(isinstance(s, str) and s for s in self.stop):
            raise InvalidInputError(f"stop must be a list of non-empty strings, got {self.stop!r:.200}.")
        if self.truncation not in TRUNCATIONS:
            raise InvalidInputError(f"truncation must be one of {', '.join(TRUNCATIONS)}, got {self.truncation!r:.80}.")
        if self.response_format is not None and not isinstance(self.response_format, Mapping):
            raise InvalidInputError(
                f"response_format must be a mapping, got {self.response_format!r:.80}.",
                hint='For example {"type": "json_object"}.',
            )
        if self.speculative is not None and not isinstance(self.speculative, (DraftModel, PromptLookup)):
            raise InvalidInputError(
                f"speculative must be a PromptLookup, a DraftModel or None, got {self.speculative!r:.80}."
            )

    def _check_together(self) -> None:
        from izwi_lab.families.shared.grammar import grammar_kind

        held = grammar_kind(self.response_format) if self.response_format is not None else None
        if held is not None and self.stop:
            raise InvalidInputError(
                f"stop would cut an answer of response_format {held!r} before it is whole.", hint="Leave stop out."
            )
        if held is not None and self.shown_tools:
            raise InvalidInputError(
                f"An answer of response_format {held!r} can hold no calls.", hint="Leave tools out, or response_format."
            )
        if self.speculative is not None and (held is not None or self.forces_call):
            what = f"response_format {held!r}" if held is not None else f"tool_choice {self.tool_choice!r:.80}"
            raise InvalidInputError(f"speculative does not go with {what}.", hint="Leave one of them out.")

    @property
    def repeatable(self) -> bool:
        """True if the same call must draw the same tokens again: a seed is given, and random numbers are drawn."""
        return self.seed is not None and self.sampling is not None and not self.sampling.greedy

    @property
    def shown_tools(self) -> Sequence[Mapping[str, Any]]:
        """The tools that the model is told of: none with tool_choice "none"."""
        return () if self.tool_choice == "none" else self.tools

    @property
    def forces_call(self) -> bool:
        """True if the answer must be a call."""
        return self.tool_choice == "required" or isinstance(self.tool_choice, Mapping)

    @property
    def forced_functions(self) -> tuple[Mapping[str, Any], ...]:
        """The functions, one of which a forced call must be."""
        functions = tuple(t["function"] for t in self.tools)
        if isinstance(self.tool_choice, Mapping):
            name = self.tool_choice["function"]["name"]
            return tuple(f for f in functions if f["name"] == name)
        return functions


def _whole(value: object) -> bool:
    return isinstance(value, Integral) and not isinstance(value, bool)


def _flag(value: object) -> bool:
    return value is None or isinstance(value, bool)


def _function_names(tools: Sequence[Mapping[str, Any]]) -> list[str]:
    """The names, after a look at the form of each tool."""
    from izwi_lab.families.shared.tool_calls import parameters_of

    if isinstance(tools, (str, Mapping)) or not isinstance(tools, Sequence):
        raise InvalidInputError(f"tools must be a list, got {tools!r:.80}.")
    names: list[str] = []
    for number, tool in enumerate(tools):
        check_depth(f"tools[{number}]", tool)
        function = tool.get("function") if isinstance(tool, Mapping) else None
        name = function.get("name") if isinstance(function, Mapping) else None
        if not isinstance(function, Mapping) or tool.get("type", "function") != "function" or not isinstance(name, str):
            raise InvalidInputError(
                f"tools[{number}] is no function: {tool!r:.200}.",
                hint='Expected {"type": "function", "function": {"name": ..., "parameters": {...}}}.',
            )
        if not _FUNCTION_NAME.fullmatch(name) or name in names:
            raise InvalidInputError(
                f"tools[{number}] has the name {name!r:.80}.",
                hint="Names are letters, digits, _ . -, and each is its own.",
            )
        parameters_of(function)
        _check_json(number, tool)
        names.append(name)
    return names


def _check_json(number: int, tool: Mapping[str, Any]) -> None:
    try:
        json.dumps(tool, ensure_ascii=False, allow_nan=False).encode()
    except (TypeError, ValueError, RecursionError) as error:
        raise InvalidInputError(f"tools[{number}] is not JSON: {error}.") from None
