"""`izwi-lab chat`: one question and its answer, or a conversation."""

from __future__ import annotations

import argparse
import sys
from typing import TYPE_CHECKING

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
    parser.add_argument("--max-tokens", type=options.count, default=512, metavar="N", help="of an answer (default 512)")
    options.add_seed(parser)
    parser.add_argument("--no-stream", action="store_true", help="print an answer when it is whole")
    options.add_backend(parser)


def run(args: argparse.Namespace) -> int:
    """Answer the message, or converse until /quit."""
    sampling = _sampling(args)
    if args.message is None:
        with options.engine(args) as engine:
            return _Conversation(args, engine, sampling).run()
    message = options.text_or_stdin(args.message, "message")
    with options.engine(args) as engine:
        _answer(args, engine, sampling, [*_system(args), {"role": "user", "content": message}])
    return 0


def _sampling(args: argparse.Namespace) -> Sampling:
    from izwi_lab.families.shared.sampling import Sampling

    if args.temperature < 0:
        raise InvalidInputError(f"--temperature expects 0 or more, got {args.temperature:g}.")
    if not 0 < args.top_p <= 1:
        raise InvalidInputError(f"--top-p expects a share above 0 and up to 1, got {args.top_p:g}.")
    if args.temperature == 0 and args.top_p < 1:
        raise InvalidInputError(
            "--top-p has no effect at temperature 0, where the likeliest token is always taken.",
            hint="Add --temperature 0.7 or leave --top-p out.",
        )
    return Sampling(temperature=args.temperature, top_p=args.top_p)


def _system(args: argparse.Namespace) -> list[dict[str, str]]:
    return [{"role": "system", "content": args.system}] if args.system else []


def _answer(
    args: argparse.Namespace, engine: InferenceEngine, sampling: Sampling, messages: list[dict[str, str]]
) -> str:
    """Print the answer as it comes and return it; Ctrl-C passes through with the stream closed."""
    with ProgressView(args.model or "chat model") as view:
        if args.no_stream:
            reply = engine.chat(
                messages,
                model=args.model,
                sampling=sampling,
                max_tokens=args.max_tokens,
                seed=args.seed,
                progress=view,
            )
            console.say(reply.text)
            _facts(args, reply.finish_reason, [reply.model, reply.backend, str(reply.timing)])
            return reply.text
        stream = engine.stream_chat(
            messages, model=args.model, sampling=sampling, max_tokens=args.max_tokens, seed=args.seed, progress=view
        )
    parts: list[str] = []
    finish_reason = None
    try:
        for delta in stream:
            parts.append(delta.text)
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


def _facts(args: argparse.Namespace, finish_reason: str | None, facts: list[str]) -> None:
    if finish_reason == "length":
        facts = [*facts, f"cut off at --max-tokens {args.max_tokens}"]
    console.note(" · ".join(fact for fact in facts if fact))


class _Conversation:
    """The turns so far, and the loop that adds to them."""

    def __init__(self, args: argparse.Namespace, engine: InferenceEngine, sampling: Sampling) -> None:
        self.args, self.engine, self.sampling = args, engine, sampling
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
            answer = _answer(self.args, self.engine, self.sampling, [*_system(self.args), *self.turns])
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
