"""`izwi-lab demo`: the main job on real weights. Say a paragraph, hear it, answer a question about it, say the answer.

Exits with 1 when more than 10 % of the words were heard wrong: then something on this machine is broken.
"""

from __future__ import annotations

import argparse
import math
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from izwi_lab.cli import console, options
from izwi_lab.cli.progress import ProgressView
from izwi_lab.errors import InvalidInputError

if TYPE_CHECKING:
    from izwi_lab.backends.base import BackendPlan
    from izwi_lab.results import ChatReply, Speech, Timing, Transcript
    from izwi_lab.runtime.service import InferenceEngine

SPEAKER, LISTENER, TALKER, GATE = "Kokoro-82M", "Whisper-base", "SmolLM2-135M-Instruct", "Silero-VAD-v6"
MAX_WORD_ERROR = 0.10
# No numbers and no names: what is heard must not depend on how they are spelt.
PARAGRAPH = (
    "The lighthouse stood at the end of a long stone pier, where the river meets the sea. Every evening, just before "
    "sunset, the keeper climbed the narrow stairs and lit the great lamp. Sailors far from home looked for its light, "
    "because it told them where the rocks were and how to reach the shore. One winter night the storm was so strong "
    "that the waves reached the windows, but the lamp kept burning, and by morning every boat had come back safely."
)
QUESTION = 'Here is what somebody said: "{heard}"\n\nWhat did the keeper do every evening? Answer in one sentence.'

T = TypeVar("T", bound="Speech | Transcript | ChatReply")


@dataclass(slots=True)
class Step:
    """One row of the report. load_s: until the model could start, seconds: of the work itself; None: does not apply."""

    step: str
    model: str
    backend: str = ""
    load_s: float | None = None
    seconds: float | None = None
    rtf: float | None = None
    tokens_per_s: float | None = None
    word_error: float | None = None


@dataclass(slots=True)
class Report:
    """What `--json` prints. plans: the router's BackendPlan of each model: where it ran, why, and why not elsewhere."""

    steps: list[Step] = field(default_factory=list)
    plans: dict[str, BackendPlan] = field(default_factory=dict)
    files: list[str] = field(default_factory=list)
    said: str = PARAGRAPH
    heard: str = ""
    answer: str = ""
    word_error: float = math.nan
    passed: bool = False


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the flags."""
    parser.add_argument("--out", type=Path, default=Path("demo-output"), metavar="DIR", help="default: ./demo-output")
    parser.add_argument("--json", action="store_true", help="print the report for programs instead of the table")
    options.add_backend(parser)


def run(args: argparse.Namespace) -> int:
    """Fetch, speak, listen, answer, speak; then report."""
    try:
        args.out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InvalidInputError(f"Cannot make the folder {str(args.out)!r}: {error.strerror}.") from error
    report = Report()
    _fetch(report)
    with options.engine(args) as engine:
        _converse(engine, report, args.out)
    report.passed = report.word_error <= MAX_WORD_ERROR
    if args.json:
        console.say_json(asdict(report))
    else:
        _print(report)
    if not report.passed:
        console.note(f"The word error is over {100 * MAX_WORD_ERROR:.0f} %: this is not how it should sound.")
    return 0 if report.passed else 1


def _fetch(report: Report) -> None:
    from izwi_lab import artifacts, catalog

    for name in (SPEAKER, LISTENER, TALKER, GATE):
        variant = catalog.get(name)
        began = time.perf_counter()
        if artifacts.locate(variant) is None:
            with ProgressView(name) as view:
                artifacts.fetch(variant, progress=view)
        report.steps.append(Step("fetch", name, seconds=time.perf_counter() - began))


def _converse(engine: InferenceEngine, report: Report, folder: Path) -> None:
    from izwi_lab.bench.wer import word_error_rate

    speech = _step(engine, report, "speak", SPEAKER, lambda: engine.speak(PARAGRAPH, model=SPEAKER))
    said = _save(report, speech, folder / "paragraph.wav")
    # The language is given: a strong accent (without npm there are only Japanese voices) can pass for another one.
    transcript = _step(
        engine,
        report,
        "transcribe",
        LISTENER,
        lambda: engine.transcribe(said, model=LISTENER, language="en", word_times=True),
    )
    report.heard = transcript.text.strip()
    report.word_error = report.steps[-1].word_error = word_error_rate(PARAGRAPH, report.heard)
    subtitles = folder / "paragraph.srt"
    subtitles.write_text(transcript.to_srt(), encoding="utf-8")
    report.files.append(str(subtitles))
    question = QUESTION.format(heard=report.heard)
    reply = _step(engine, report, "chat", TALKER, lambda: engine.chat(question, model=TALKER, max_tokens=64))
    report.answer = reply.text.strip()
    answer = _step(
        engine, report, "speak", SPEAKER, lambda: engine.speak(report.answer or "I have no answer.", model=SPEAKER)
    )
    _save(report, answer, folder / "answer.wav")


def _step(engine: InferenceEngine, report: Report, name: str, model: str, work: Callable[[], T]) -> T:
    console.note(f"{name} with {model} ...")
    began = time.perf_counter()
    engine.load(model)
    load_s = time.perf_counter() - began
    plan = engine.plan(model)
    report.plans[model] = plan
    result = work()
    timing: Timing = result.timing
    report.steps.append(
        Step(
            name,
            model,
            f"{plan.backend} {plan.device} {plan.dtype}",
            load_s,
            timing.total_s,
            None if math.isnan(timing.rtf) else timing.rtf,
            None if name != "chat" or math.isnan(timing.tokens_per_s) else timing.tokens_per_s,
        )
    )
    return result


def _save(report: Report, speech: Speech, path: Path) -> Path:
    speech.audio.save(path)
    report.files.append(str(path))
    return path


def _print(report: Report) -> None:
    console.say(f"\nSaid:    {report.said}\nHeard:   {report.heard}\nAnswer:  {report.answer}\n")
    console.say(
        console.table(
            ["STEP", "MODEL", "BACKEND", "LOAD s", "SECONDS", "RTF", "TOKENS/s", "WORD ERROR"],
            [
                [
                    step.step,
                    step.model,
                    step.backend or "-",
                    _number(step.load_s, ".2f"),
                    _number(step.seconds, ".2f"),
                    _number(step.rtf, ".3f"),
                    _number(step.tokens_per_s, ".1f"),
                    "-" if step.word_error is None else f"{100 * step.word_error:.1f} %",
                ]
                for step in report.steps
            ],
            right=["LOAD s", "SECONDS", "RTF", "TOKENS/s", "WORD ERROR"],
        )
    )
    console.say()
    runs = [[model, f"{p.backend} {p.device} {p.dtype}", p.reason] for model, p in report.plans.items()]
    console.say(console.table(["MODEL", "RUNS ON", "BECAUSE"], runs))
    console.say()
    refused = dict.fromkeys((r.backend, r.device, r.reason) for p in report.plans.values() for r in p.rejected)
    console.say(console.table(["NOT", "ON", "BECAUSE"], [list(row) for row in refused]))
    console.say("\nWrote " + ", ".join(report.files))


def _number(value: float | None, form: str) -> str:
    return "-" if value is None else format(value, form)
