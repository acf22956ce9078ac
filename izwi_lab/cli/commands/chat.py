"""`izwi-lab chat`: one question and its answer, or a conversation."""

from __future__ import annotations

import argparse
import json
import sys
from typing import TYPE_CHECKING, Any, Self

from izwi_lab.cli import console, options
from izwi_lab.cli.progress import ProgressView
from izwi_lab.errors import InvalidInputError, IzwiError

if TYPE_CHECKING:
    from izwi_lab.families.shared.sampling import Sampling
    from izwi_lab.runtime.service import InferenceEngine

_HELP = "/help shows this · /clear forgets the conversation · /quit (or Ctrl-D) leaves · Ctrl-C stops an answer"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the flags."""
    parser.add_argument(
        "message", nargs="?", metavar="MESSAGE", help="what to ask; - reads standard input; none: a conversation"
    )
    options.add_model(parser, "chat model")
    parser.add_argument("--system", metavar="TEXT", help="instructions that come before the conversation")
    parser.add_argument("--temperature", type=float, default=0.0, metavar="T", help="0 (default) takes the likeliest")
    parser.add_argument("--top-p", type=float, default=1.0, metavar="P", help="sample from this share of probability")
    parser.add_argument("--top-k", type=options.count, metavar="N", help="sample from the N likeliest tokens")
    parser.add_argument(
        "--min-p", type=float, default=0.0, metavar="P", help="leave out tokens below this share of the likeliest one's"
    )
    parser.add_argument("--max-tokens", type=options.count, default=512, metavar="N", help="of an answer (default 512)")
    parser.add_argument("--stop", action="append", default=[], metavar="TEXT", help="end at this text; may be repeated")
    parser.add_argument(
        "--think", action=argparse.BooleanOptionalAction, help="whether to think first (default: as the model does)"
    )
    held = parser.add_mutually_exclusive_group()
    held.add_argument("--json", action="store_true", help="answer with a JSON object")
    held.add_argument("--json-schema", metavar="FILE", help="answer with JSON that satisfies the schema in FILE")
    held.add_argument("--regex", metavar="PATTERN", help="answer with text that matches PATTERN from end to end")
    parser.add_argument(
        "--truncation",
        choices=("error", "oldest"),
        default="error",
        help="of a conversation longer than the context: leave out the oldest turns, or say so (default)",
    )
    options.add_seed(parser)
    parser.add_argument("--no-stream", action="store_true", help="print an answer when it is whole")
    options.add_backend(parser)


def run(args: argparse.Namespace) -> int:
    """Answer the message, or converse until /quit."""
    asked = _options(args)
    if args.message is None:
        with options.engine(args) as engine:
            return _Conversation(args, engine, asked).run()
    message = options.text_or_stdin(args.message, "message")
    with options.engine(args) as engine:
        _answer(args, engine, asked, [*_system(args), {"role": "user", "content": message}])
    return 0


def _options(args: argparse.Namespace) -> dict[str, Any]:
    """What chat and stream_chat are asked, by the names of their options; only what the flags say."""
    given = {"thinking": args.think, "stop": tuple(args.stop), "response_format": _format(args)}
    asked = {name: value for name, value in given.items() if value not in (None, ())}
    if args.truncation != "error":
        asked["truncation"] = args.truncation
    return {"model": args.model, "sampling": _sampling(args), "max_tokens": args.max_tokens, "seed": args.seed, **asked}


def _format(args: argparse.Namespace) -> dict[str, Any] | None:
    if args.json:
        return {"type": "json_object"}
    if args.regex is not None:
        return {"type": "regex", "regex": args.regex}
    if args.json_schema is None:
        return None
    path = options.path(args.json_schema)
    try:
        schema = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise InvalidInputError(f"--json-schema {path} cannot be read: {error}.") from None
    if not isinstance(schema, (dict, bool)):
        raise InvalidInputError(f"--json-schema {path} holds no schema, got {schema!r:.80}.")
    return {"type": "json_schema", "json_schema": {"name": "answer", "schema": schema}}


def _sampling(args: argparse.Namespace) -> Sampling:
    from izwi_lab.families.shared.sampling import Sampling

    if args.temperature < 0:
        raise InvalidInputError(f"--temperature expects 0 or more, got {args.temperature:g}.")
    if not 0 < args.top_p <= 1:
        raise InvalidInputError(f"--top-p expects a share above 0 and up to 1, got {args.top_p:g}.")
    if not 0 <= args.min_p <= 1:
        raise InvalidInputError(f"--min-p expects a share from 0 to 1, got {args.min_p:g}.")
    idle = [n for n, set_ in (("--top-p", args.top_p < 1), ("--top-k", args.top_k), ("--min-p", args.min_p)) if set_]
    if args.temperature == 0 and idle:
        raise InvalidInputError(
            f"{idle[0]} has no effect at temperature 0, where the likeliest token is always taken.",
            hint=f"Add --temperature 0.7 or leave {idle[0]} out.",
        )
    return Sampling(temperature=args.temperature, top_p=args.top_p, top_k=args.top_k or 0, min_p=args.min_p)


def _system(args: argparse.Namespace) -> list[dict[str, str]]:
    return [{"role": "system", "content": args.system}] if args.system else []


def _answer(
    args: argparse.Namespace, engine: InferenceEngine, asked: dict[str, Any], messages: list[dict[str, str]]
) -> str:
    """Print the answer as it comes and return it; Ctrl-C passes through with the stream closed."""
    with ProgressView(args.model or "chat model") as view:
        if args.no_stream:
            reply = engine.chat(messages, progress=view, **asked)
            with _Thoughts() as thoughts:
                thoughts.write(reply.reasoning)
            console.say(reply.text)
            _facts(args, reply.finish_reason, [reply.model, reply.backend, str(reply.timing)])
            return reply.text
        stream = engine.stream_chat(messages, progress=view, **asked)
    parts: list[str] = []
    finish_reason = None
    try:
        with _Thoughts() as thoughts:
            for delta in stream:
                thoughts.write(delta.reasoning)
                parts.append(delta.text)
                if delta.text:
                    thoughts.end()
                    sys.stdout.write(delta.text)
                    sys.stdout.flush()
                finish_reason = delta.finish_reason or finish_reason
    except KeyboardInterrupt as stop:
        stop.partial = "".join(parts)  # type: ignore[attr-defined]
        raise
    finally:
        stream.close()
        console.say()
    _facts(args, finish_reason, [stream.model, stream.backend, str(stream.timing)])
    return "".join(parts)


class _Thoughts:
    """Reasoning on stderr, apart from the answer: dimmed at a terminal, between tags elsewhere."""

    def __init__(self) -> None:
        self._dim = sys.stderr.isatty()
        self._open = False

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *raised: object) -> None:
        self.end()

    def write(self, text: str) -> None:
        """A piece of what was thought."""
        if text:
            opening = "" if self._open else "\x1b[2m" if self._dim else "<think>\n"
            sys.stderr.write(opening + text)
            sys.stderr.flush()
            self._open = True

    def end(self) -> None:
        """The answer begins, or nothing more comes."""
        if self._open:
            sys.stderr.write("\x1b[0m\n" if self._dim else "\n</think>\n")
            sys.stderr.flush()
            self._open = False


def _facts(args: argparse.Namespace, finish_reason: str | None, facts: list[str]) -> None:
    if finish_reason == "length":
        facts = [*facts, f"cut off at --max-tokens {args.max_tokens}"]
    console.note(" · ".join(fact for fact in facts if fact))


class _Conversation:
    """The turns so far, and the loop that adds to them."""

    def __init__(self, args: argparse.Namespace, engine: InferenceEngine, asked: dict[str, Any]) -> None:
        self.args, self.engine, self.asked = args, engine, asked
        self.turns: list[dict[str, str]] = []

    def run(self) -> int:
        """Read lines until the end; Ctrl-C at the prompt leaves with 130."""
        console.note(_HELP)
        while True:
            line = self._read()
            if line is None or line in ("/quit", "/exit", "/q"):
                return 0
            if line == "/help":
                console.note(_HELP)
            elif line == "/clear":
                self.turns.clear()
                console.note("Forgotten.")
            elif line.startswith("/"):
                console.note(f"There is no command {line.split()[0]}. {_HELP}")
            elif line:
                self._turn(line)

    def _read(self) -> str | None:
        try:
            if sys.stdin.isatty():
                return input("> ").strip()
            line = sys.stdin.readline()
            return line.strip() if line else None
        except EOFError:
            return None

    def _turn(self, line: str) -> None:
        self.turns.append({"role": "user", "content": line})
        try:
            answer = _answer(self.args, self.engine, self.asked, [*_system(self.args), *self.turns])
        except KeyboardInterrupt as stop:
            answer = getattr(stop, "partial", "")
            console.note("Stopped.")
        except IzwiError as error:
            self.turns.pop()  # a turn without an answer would be sent again with the next one
            if self.args.debug:
                raise
            console.note(f"izwi-lab chat: {error}")
            return
        self.turns.append({"role": "assistant", "content": answer})
