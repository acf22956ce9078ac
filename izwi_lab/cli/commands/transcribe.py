"""`izwi-lab transcribe`: sound files to text, subtitles or JSON."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from izwi_lab.cli import console, options
from izwi_lab.cli.progress import ProgressView
from izwi_lab.errors import Cancelled, InvalidInputError, IzwiError

if TYPE_CHECKING:
    from izwi_lab.results import Transcript
    from izwi_lab.runtime.service import InferenceEngine

FORMATS: dict[str, Callable[[Transcript], str]] = {
    "txt": lambda transcript: transcript.to_text().strip() + "\n",
    "json": lambda transcript: json.dumps({"text": transcript.text}, ensure_ascii=False) + "\n",
    "srt": lambda transcript: transcript.to_srt(),
    "vtt": lambda transcript: transcript.to_vtt(),
    "verbose-json": lambda transcript: transcript.to_json() + "\n",
}
_SUFFIX = {"verbose-json": ".json"}
_TIMED = ("srt", "vtt", "verbose-json")  # the formats that show when a word was said


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the flags."""
    parser.add_argument("files", nargs="+", metavar="FILE", help="sound or film files; - reads standard input")
    options.add_model(parser, "recognition model")
    parser.add_argument("-l", "--language", metavar="LANG", help="code or name of what is spoken (default: detect)")
    parser.add_argument(
        "--task", choices=["transcribe", "translate"], default="transcribe", help="translate: into English"
    )
    parser.add_argument("--prompt", metavar="TEXT", help="text that came before, or names and words to expect")
    parser.add_argument("--word-times", action="store_true", help="time each word; long subtitles then split at words")
    parser.add_argument("-f", "--format", choices=list(FORMATS), default="txt", help="default: txt")
    parser.add_argument("-o", "--output", metavar="PATH", help="a file, or a folder for several (default: stdout)")
    options.add_backend(parser)


def run(args: argparse.Namespace) -> int:
    """Transcribe each file; one that fails is reported and does not stop the others."""
    if args.word_times and args.format not in _TIMED:
        raise InvalidInputError(
            f"--word-times has no effect on {args.format}, which shows no times.",
            hint=f"Add -f {', -f '.join(_TIMED)}, or leave --word-times out.",
        )
    targets = _targets(args)
    failed = 0
    with options.engine(args) as engine:
        for name, target in zip(args.files, targets, strict=True):
            try:
                _one(args, engine, name, target)
            except Cancelled:
                raise
            except IzwiError as error:
                if len(args.files) == 1 or args.debug:
                    raise
                failed += 1
                console.note(f"izwi-lab transcribe: {name}: {error}")
    return 1 if failed else 0


def _one(args: argparse.Namespace, engine: InferenceEngine, name: str, target: Path | None) -> None:
    with ProgressView(args.model or "recognition model") as view:
        transcript = engine.transcribe(
            sys.stdin.buffer.read() if name == "-" else Path(name),
            model=args.model,
            language=args.language,
            task=args.task,
            prompt=args.prompt,
            word_times=args.word_times,
            progress=view,
        )
    text = FORMATS[args.format](transcript)
    if target is None:
        _print(args, name, text)
    else:
        _write(target, text)
        console.say(str(target))
    facts = [transcript.language, transcript.model, transcript.backend, str(transcript.timing)]
    console.note(f"{name}: " + " · ".join(fact for fact in facts if fact))


def _targets(args: argparse.Namespace) -> list[Path | None]:
    """Where each result goes, settled before any work is done."""
    if args.output is None:
        return [None] * len(args.files)
    output = options.path(args.output)
    folder = output.is_dir() or len(args.files) > 1 or args.output.endswith(("/", "\\"))
    if not folder:
        if not output.parent.is_dir():
            raise InvalidInputError(f"There is no folder {str(output.parent)!r} to write to.", hint="Make it first.")
        return [output]
    suffix = _SUFFIX.get(args.format, f".{args.format}")
    targets = [output / ("stdin" if name == "-" else Path(name).stem) for name in args.files]
    targets = [target.with_name(target.name + suffix) for target in targets]
    doubled = sorted({str(target) for target in targets if targets.count(target) > 1})
    if doubled:
        raise InvalidInputError(f"Two results would be written to {doubled[0]!r}.", hint="Transcribe them one by one.")
    if output.exists() and not output.is_dir():
        raise InvalidInputError(f"{args.output!r} is a file; several results need a folder.", hint="Name another.")
    try:
        output.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InvalidInputError(f"Cannot make the folder {str(output)!r}: {error.strerror}.") from error
    return list(targets)


def _print(args: argparse.Namespace, name: str, text: str) -> None:
    """Several texts are told apart by a heading; several JSON results are one line each, with the file's name."""
    if len(args.files) > 1 and args.format in ("json", "verbose-json"):
        text = json.dumps({"file": name, **json.loads(text)}, ensure_ascii=False) + "\n"
    elif len(args.files) > 1:
        text = f"==> {name} <==\n{text}"
    sys.stdout.write(text)
    sys.stdout.flush()


def _write(target: Path, text: str) -> None:
    try:
        target.write_text(text, encoding="utf-8")
    except OSError as error:
        raise InvalidInputError(
            f"Cannot write {str(target)!r}: {error.strerror}.", hint="Check the folder and the free space."
        ) from error
