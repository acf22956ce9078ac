"""`izwi-lab speak`: text to a sound file, a pipe or the loudspeaker; whole, or piece by piece as it is made."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, BinaryIO

from izwi_lab.cli import console, options
from izwi_lab.cli.progress import ProgressView
from izwi_lab.errors import AudioError, InvalidInputError

if TYPE_CHECKING:
    from izwi_lab.audio import Audio
    from izwi_lab.audio_encoding import Encoder
    from izwi_lab.cli.playback import Playback
    from izwi_lab.families.qwen3_tts.voice import Voice
    from izwi_lab.families.shared.sampling import Sampling
    from izwi_lab.runtime.service import InferenceEngine


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the flags."""
    parser.add_argument("text", metavar="TEXT", help="what to say; - reads standard input")
    options.add_model(parser, "speech model")
    parser.add_argument("-v", "--voice", metavar="NAME", help="a voice, or a blend such as af_heart+am_michael")
    parser.add_argument("--voice-file", metavar="FILE", help="a cloned voice, kept by `izwi-lab voices --clone`")
    parser.add_argument("--reference", metavar="AUDIO", help="speak in the voice of this recording")
    parser.add_argument(
        "--transcript", metavar="TEXT", help="what the recording says, word for word: a closer likeness"
    )
    parser.add_argument("--instruct", metavar="TEXT", help="how to speak, or what the voice is like, in words")
    parser.add_argument("-l", "--language", metavar="LANG", help="code or name (Kokoro: en, en-us, en-gb)")
    parser.add_argument("--speed", type=options.positive, default=1.0, metavar="X", help="1.0 is the voice's own pace")
    parser.add_argument(
        "--text-mode", choices=["whole", "streaming"], help="read all text before the first sound, or while speaking"
    )
    options.add_seed(parser)
    parser.add_argument(
        "--temperature", type=float, metavar="T", help="of drawing speech codes; 0 takes the likeliest (Qwen3-TTS: 0.9)"
    )
    parser.add_argument("--top-p", type=float, metavar="P", help="draw from this share of probability (Qwen3-TTS: 1)")
    parser.add_argument("--top-k", type=options.count, metavar="N", help="draw from the N likeliest (Qwen3-TTS: 50)")
    parser.add_argument(
        "--max-frames", type=options.count, metavar="N", help="at most, of each piece of the text: 12.5 are a second"
    )
    parser.add_argument("-o", "--output", metavar="FILE", help="- writes to standard output (default: speech.wav)")
    parser.add_argument("--format", metavar="NAME", help="wav, flac, mp3, opus, aac, m4a or pcm (default: by suffix)")
    parser.add_argument("--play", action="store_true", help="play it; writes a file only if -o is given")
    parser.add_argument("--stream", action="store_true", help="write and play each piece as soon as it is made")
    options.add_backend(parser)


def run(args: argparse.Namespace) -> int:
    """Speak. The name of the written file is the only thing on stdout."""
    from izwi_lab.audio_encoding import format_name, format_of

    text = options.text_or_stdin(args.text, "text")
    if args.play:
        from izwi_lab.cli.playback import check_player

        check_player()
    to_stdout = args.output == "-"
    if args.format:
        kind = format_name(args.format)
    else:
        kind = "wav" if args.output is None or to_stdout else format_of(args.output)
    target = None if to_stdout else _target(args, kind)
    with options.engine(args) as engine, ExitStack() as stack:
        view = stack.enter_context(ProgressView(args.model or "speech model"))
        sink = None
        if to_stdout or target:
            sink = stack.enter_context(_Output(kind, target))
        speaker = _stream if args.stream else _whole
        summary = speaker(args, engine, text, sink, view)
    if target:
        console.say(str(target))
    console.note(summary)
    return 0


def _target(args: argparse.Namespace, kind: str) -> Path | None:
    """The file to write; None for playing only. Without -o a free name in this folder, so nothing is overwritten."""
    if args.output is not None:
        path = options.path(args.output)
        if not path.parent.is_dir():
            raise InvalidInputError(f"There is no folder {str(path.parent)!r} to write to.", hint="Make it first.")
        return path
    if args.play:
        return None
    suffix = f".{kind}"
    names = (Path(f"speech{f'-{n}' if n > 1 else ''}{suffix}") for n in range(1, 10_000))
    return next(path for path in names if not path.exists())


def _whole(
    args: argparse.Namespace, engine: InferenceEngine, text: str, sink: _Output | None, view: ProgressView
) -> str:
    from izwi_lab.cli.playback import Playback

    with ExitStack() as stack:
        speech = engine.speak(text, **_asked(args), progress=view)
        if sink:
            sink.write(speech.audio)
        if args.play:
            stack.enter_context(Playback(speech.audio.rate_hz)).write(speech.audio)
    for note in speech.notes:
        console.note(note)
    facts = [speech.model, speech.voice, speech.backend, str(speech.timing)]
    return _summary(speech.audio.duration_s, speech.audio.rate_hz, sink, facts)


def _stream(
    args: argparse.Namespace, engine: InferenceEngine, text: str, sink: _Output | None, view: ProgressView
) -> str:
    from izwi_lab.cli.playback import Playback

    player: Playback | None = None
    samples, rate_hz = 0, 0
    stream = engine.stream_speak(text, **_asked(args), progress=view)
    with ExitStack() as stack:
        stack.callback(stream.close)
        for chunk in stream:
            rate_hz = chunk.audio.rate_hz
            samples += len(chunk.audio)
            for note in chunk.notes:
                console.note(note)
            if sink:
                sink.write(chunk.audio)
            if args.play:
                player = player or stack.enter_context(Playback(rate_hz))
                player.write(chunk.audio)
    return _summary(samples / max(rate_hz, 1), rate_hz, sink, [stream.model, stream.backend, str(stream.timing)])


def _asked(args: argparse.Namespace) -> dict[str, Any]:
    """The options of the request."""
    return {
        "model": args.model,
        "voice": args.voice if args.voice_file is None else _voice_file(args),
        "language": args.language,
        "speed": args.speed,
        "instruct": args.instruct,
        "reference": None if args.reference is None else options.path(args.reference),
        "transcript": args.transcript,
        "text_mode": args.text_mode,
        "sampling": _sampling(args),
        "max_frames": args.max_frames,
        "seed": args.seed,
    }


def _sampling(args: argparse.Namespace) -> Sampling | None:
    """How the first code of each frame is drawn: the reference's defaults where a flag says nothing, None without."""
    given = {name: value for name in ("temperature", "top_p", "top_k") if (value := getattr(args, name)) is not None}
    if not given:
        return None
    from izwi_lab.families.qwen3_tts.generation import Generation

    if given.get("temperature") == 0 and len(given) > 1:
        idle = next(f"--{name.replace('_', '-')}" for name in given if name != "temperature")
        raise InvalidInputError(
            f"{idle} has no effect at temperature 0, where the likeliest is always taken.", hint=f"Leave {idle} out."
        )
    return replace(Generation().talker, **given)


def _voice_file(args: argparse.Namespace) -> Voice:
    from izwi_lab.families.qwen3_tts.voice import Voice

    if args.voice is not None:
        raise InvalidInputError("Both --voice and --voice-file were given.", hint="Give one of them.")
    return Voice.load(options.path(args.voice_file))


def _summary(seconds: float, rate_hz: int, sink: _Output | None, facts: list[str]) -> str:
    clipped = sink.encoder.clipped if sink and sink.encoder else 0
    warning = [f"{clipped} samples CLIPPED"] if clipped else []
    shown = (console.plain(fact) for fact in facts if fact)
    return " · ".join([f"{seconds:.2f} s at {rate_hz / 1000:g} kHz", *warning, *shown])


class _Output:
    """The encoder on a file or on standard output, opened when the first piece says its rate.

    A file that is being streamed can be read while it grows; an interrupt leaves what was spoken so far, playable.
    """

    def __init__(self, kind: str, target: Path | None) -> None:
        self.kind, self.target = kind, target
        self.encoder: Encoder | None = None
        self._sink: BinaryIO | _Pipe
        self._stack = ExitStack()

    def write(self, audio: Audio) -> None:
        from izwi_lab.audio_encoding import Encoder

        if self.encoder is None:
            self._sink = self._stack.enter_context(_opened(self.target))
            self.encoder = self._stack.enter_context(Encoder(self._sink, self.kind, audio.rate_hz))
        self.encoder.write(audio)
        self._sink.flush()

    def __enter__(self) -> _Output:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.__exit__(kind, error, trace)


@contextmanager
def _opened(target: Path | None) -> Iterator[BinaryIO | _Pipe]:
    if target is None:
        yield _Pipe(sys.stdout.buffer)
        return
    try:
        with target.open("w+b") as file:
            yield file
    except OSError as error:
        raise AudioError(
            f"Cannot write {str(target)!r}: {error.strerror or error}.", hint="Check the folder and the free space."
        ) from error


class _Pipe:
    """Standard output seen as what it is here, a stream: even redirected to a file it is never rewound."""

    def __init__(self, stream: BinaryIO) -> None:
        self._stream = stream

    def write(self, data: bytes, /) -> int:
        return self._stream.write(data)

    def flush(self) -> None:
        self._stream.flush()
