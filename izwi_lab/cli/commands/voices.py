"""`izwi-lab voices`: preset voices of the speech models, and cloned ones kept in files."""

from __future__ import annotations

import argparse
import re
from typing import TYPE_CHECKING, Any

from izwi_lab.cli import console, options
from izwi_lab.cli.progress import ProgressView
from izwi_lab.errors import InvalidInputError

if TYPE_CHECKING:
    from izwi_lab.families.qwen3_tts.voice import Voice

_CLONING = "Qwen3-TTS-12Hz-0.6B-Base"
_NAME_BYTES = 200  # of a file's name, less than any file system allows


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the flags."""
    parser.add_argument(
        "-m",
        "--model",
        metavar="ID",
        help=f"only this model, by id, repo or folder; with --clone, the one to clone with (default: {_CLONING})",
    )
    parser.add_argument("--folder", metavar="FOLDER", help="list the cloned voices kept there instead")
    parser.add_argument("--clone", metavar="AUDIO", help="make a voice of this recording of one person, 0.5 to 30 s")
    parser.add_argument(
        "--transcript", metavar="TEXT", help="what the recording says, word for word: a closer likeness"
    )
    parser.add_argument("--name", metavar="NAME", help="what the cloned voice is called (default: the file's name)")
    parser.add_argument("-l", "--language", metavar="LANG", help="what the recording is spoken in, for the list")
    parser.add_argument("-o", "--output", metavar="FILE", help="where to keep it (default: NAME.safetensors)")
    parser.add_argument("--json", action="store_true", help="for programs: one object per voice")
    options.add_backend(parser)


def run(args: argparse.Namespace) -> int:
    """List voices, or make one."""
    if args.clone is not None:
        if args.folder is not None:
            raise InvalidInputError("--folder lists voices, --clone makes one.", hint="Give one of them.")
        return _clone(args)
    for flag in ("transcript", "name", "language", "output"):
        if getattr(args, flag) is not None:
            raise InvalidInputError(f"--{flag} belongs to --clone.", hint="Give the recording: --clone AUDIO.")
    return _kept(args) if args.folder is not None else _presets(args)


def _presets(args: argparse.Namespace) -> int:
    """One row per model that speaks: its voices, or how else it comes by one."""
    from izwi_lab import catalog
    from izwi_lab.catalog.variant import Task
    from izwi_lab.runtime.voices import presets

    chosen = [(v, v.voices) for v in catalog.variants(Task.TTS)] if args.model is None else [presets(args.model)]
    rows = [{"model": v.id, "voices": list(names), "notes": v.notes} for v, names in chosen if Task.TTS in v.tasks]
    if not rows:
        raise InvalidInputError(f"{args.model} does not speak.", hint="`izwi-lab list --task tts` shows those that do.")
    if args.json:
        console.say_json(rows)
        return 0
    for row in rows:
        console.say(console.plain(f"{row['model']}: {', '.join(row['voices']) or 'no presets. ' + str(row['notes'])}"))
    return 0


def _kept(args: argparse.Namespace) -> int:
    """One row per cloned voice of a folder."""
    from izwi_lab.families.qwen3_tts.voice import kept

    voices, damaged = kept(options.path(args.folder))
    for error in damaged:
        console.note(f"Passed over: {error}")
    if args.json:
        console.say_json([_row(v) for v in voices])
        return 0
    if not voices:
        console.note(f"No voice is kept in {args.folder}; --clone AUDIO makes one.")
        return 0
    rows = [
        [
            v.name,
            f"{v.reference_s:.1f} s" if v.transcript else "-",
            v.language or "-",
            v.source or "-",
            _short(v.transcript),
        ]
        for v in voices
    ]
    console.say(console.table(["NAME", "REFERENCE", "LANGUAGE", "MADE BY", "SAYS"], rows, right=["REFERENCE"]))
    return 0


def _short(text: str, most: int = 60) -> str:
    return text if len(text) <= most else text[: most - 1] + "…"


def _row(voice: Voice) -> dict[str, Any]:
    facts = ("name", "language", "source", "transcript", "reference_s")
    return {name: getattr(voice, name) for name in facts} | {"width": len(voice.embedding)}


def _stem(name: str) -> str:
    """A voice's name as that of a file in this folder: letters, digits and spaces as they are, and no way out of it."""
    safe = re.sub(r"[^\w .-]+", "_", name).strip(" ._-")
    return safe.encode(errors="ignore")[:_NAME_BYTES].decode(errors="ignore").strip(" ._-") or "voice"


def _clone(args: argparse.Namespace) -> int:
    """Make a voice and keep it. The name of the written file is the only thing on stdout."""
    from izwi_lab.families.qwen3_tts.voice_file import file_path

    source = options.path(args.clone)
    name = source.stem if args.name is None else args.name
    target = file_path(options.path(args.output) if args.output is not None else f"{_stem(name)}.safetensors")
    if not target.parent.is_dir():
        raise InvalidInputError(f"There is no folder {str(target.parent)!r} to write to.", hint="Make it first.")
    if args.output is None and target.exists():
        raise InvalidInputError(f"{target} is there already.", hint="Give another --name, or -o to write over it.")
    model = args.model or _CLONING
    with options.engine(args) as engine, ProgressView(model) as view:
        voice = engine.voice(
            source, args.transcript, model=model, name=name, language=args.language or "", progress=view
        )
    voice.save(target)
    console.say(str(target))
    console.note(repr(voice))
    return 0
