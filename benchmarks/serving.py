"""Many requests at once, through the engine: how many tokens a second, and how long one waits beside the others.

    python -m benchmarks.serving [PART ...] [--model MODEL] [--concurrency 1 2 4 8] [--seconds 20] [--no-peer] …
    python -m benchmarks.serving speech --device cuda:0 --concurrency 1 4 8 16 --frames 100

Parts, each a table in one record (all of them by default):
  many    the same requests, 1 to 8 of them at a time; llama.cpp decodes as many sequences in one call
  short   the first token of a short request, alone and at a random moment of a long prompt's reading
  prefix  the first token after a long prompt, the first time and when somebody has asked with it before
  speech  streams of Qwen3-TTS at full size, random weights
  load    64 mixed requests at random moments within --seconds

The device is the router's choice or --device; a peer that is not installed is a row that says so.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from benchmarks import serving_work
from benchmarks.peers import PEERS
from izwi_lab import artifacts, catalog
from izwi_lab.bench import cli, suite
from izwi_lab.bench.contender import METRICS, CaseResult, ContenderSpec, Workload
from izwi_lab.bench.harness import Plan, run_in_turn
from izwi_lab.bench.record import Table
from izwi_lab.bench.stats import quantile, ratio, values_of
from izwi_lab.catalog.variant import ModelVariant
from izwi_lab.errors import InvalidInputError, IzwiError

PARTS = ("many", "short", "prefix", "speech", "load")
CHAT, SPEECH = "SmolLM2-135M-Instruct", "Qwen3-TTS-12Hz-0.6B-CustomVoice"
OURS, OURS_SPEECH = "benchmarks.serving_ours:Serving", "benchmarks.serving_speech:ServingSpeech"
PEER = "benchmarks.peers.llama_parallel:LlamaParallel"
SOURCE = str(Path(__file__).resolve().parents[1])
_SERVED = next(m for m in METRICS if m.name == "served_tps")
_DECODED = next(m for m in METRICS if m.name == "decode_tps")
_FIRST = next(m for m in METRICS if m.name == "first_s")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The parts, how much is asked, and the flags of every benchmark."""
    parser.add_argument("parts", nargs="*", metavar="PART", help=f"of {', '.join(PARTS)} (default: all)")
    parser.add_argument("--model", default=CHAT, help=f"chat model (default: {CHAT})")
    parser.add_argument("--speech-model", default=SPEECH, help=f"of the part speech (default: {SPEECH})")
    parser.add_argument("--load-format", choices=["auto", "dummy"], default="dummy", help="of the part speech")
    parser.add_argument("--concurrency", type=int, nargs="+", default=None, metavar="N", help="requests at once")
    parser.add_argument("--prompt", type=int, default=48, metavar="TOKENS", help="of the part many (default: 48)")
    parser.add_argument("--tokens", type=int, default=128, help="of an answer in the part many (default: 128)")
    parser.add_argument("--short", type=int, default=100, metavar="TOKENS", help="of a short prompt (default: 100)")
    parser.add_argument("--long", type=int, default=2000, metavar="TOKENS", help="of a long prompt (default: 2000)")
    parser.add_argument("--shared", type=int, default=1000, metavar="TOKENS", help="of a shared prompt (default: 1000)")
    parser.add_argument("--repetitions", type=int, default=30, help="short requests to wait for (default: 30)")
    parser.add_argument("--frames", type=int, default=25, help="of speech, 80 ms each (default: 25)")
    parser.add_argument("--requests", type=int, default=64, help="of the part load (default: 64)")
    parser.add_argument("--seconds", type=float, default=20.0, help="within which they come (default: 20)")
    cli.add_common_arguments(parser)


def tables(args: argparse.Namespace, plan: Plan, spare: Path) -> list[Table]:
    """One table for each part that was asked for."""
    if unknown := set(args.parts) - set(PARTS):
        raise InvalidInputError(f"No part is called {sorted(unknown)}.", hint=f"Parts: {', '.join(PARTS)}.")
    for name in ("prompt", "tokens", "short", "long", "shared", "repetitions", "frames", "requests"):
        if getattr(args, name) < 1:
            raise InvalidInputError(f"--{name} is {getattr(args, name)}.", hint="Expected 1 or more.")
    if any(n < 1 for n in args.concurrency or ()) or args.seconds <= 0:
        raise InvalidInputError("--concurrency takes whole numbers from 1, --seconds a positive number.")
    make = {"many": many, "short": short, "prefix": prefix, "speech": speech, "load": load}
    return [make[part](args, plan) for part in PARTS if part in (args.parts or PARTS)]


def many(args: argparse.Namespace, plan: Plan) -> Table:
    """Ours and llama.cpp at every number of requests at once, on the same requests."""
    variant, numbers = catalog.get(args.model), args.concurrency or [1, 2, 4, 8]
    workload = serving_work.many(max(numbers), args.prompt, args.tokens)
    contenders = [_ours(variant, args, f"izwi-lab, {n} at once", at_once=n) for n in numbers]
    if args.peer:
        peers = [_peer(variant, args, n) for n in sorted({numbers[0], numbers[-1]})]
        contenders += [peer for peer in peers if args.against in peer.name]
    table = _run(variant.id, workload, contenders, plan)
    cases = {case.contender: case for case in table.cases if case.runs}
    ours, peer = (cases.get(f"{who}, {numbers[-1]} at once") for who in ("izwi-lab", "llama.cpp"))
    notes = (_of_each(ours, peer),) if ours and peer else ()
    return replace(table, reference=contenders[0].name, notes=notes)


def short(args: argparse.Namespace, plan: Plan) -> Table:
    """A short request alone, and beside a long prompt."""
    variant, workload = catalog.get(args.model), serving_work.short(args.short, args.long)
    contenders = [
        _ours(variant, args, "alone"),
        _ours(variant, args, f"beside {args.long} tokens", beside=args.long),
    ]
    table = _run(variant.id, workload, contenders, replace(plan, runs=args.repetitions))
    return replace(table, reference="alone", notes=_waits(table.cases))


def prefix(args: argparse.Namespace, plan: Plan) -> Table:
    """A long prompt that nobody has asked with, and one that somebody has."""
    variant, workload = catalog.get(args.model), serving_work.prefix(args.shared)
    contenders = [_ours(variant, args, "the first time"), _ours(variant, args, "in the cache", warm=True)]
    return replace(_run(variant.id, workload, contenders, plan), reference="in the cache")


def speech(args: argparse.Namespace, plan: Plan) -> Table:
    """Streams of speech, more and more of them."""
    variant, workload = catalog.get(args.speech_model), serving_work.speech(40, args.frames)
    options = suite.Options(args.backend, args.device, args.dtype or "bfloat16", args.load_format, OURS_SPEECH)
    contenders = [
        suite.ours(variant, replace(options, extra={"at_once": n}), name=f"{n} {'stream' if n == 1 else 'streams'}")
        for n in args.concurrency or [1, 4, 8, 16]
    ]
    subject = f"{variant.id}{', random weights' if args.load_format == 'dummy' else ''}"
    table = _run(subject, workload, contenders, replace(plan, loads=1))
    return replace(table, reference=contenders[0].name)


def load(args: argparse.Namespace, plan: Plan) -> Table:
    """Mixed requests at random moments."""
    variant = catalog.get(args.model)
    workload = serving_work.mixed(args.requests, args.seconds)
    return _run(variant.id, workload, [_ours(variant, args, "izwi-lab")], plan)


def _ours(variant: ModelVariant, args: argparse.Namespace, name: str, **extra: object) -> ContenderSpec:
    options = suite.Options(args.backend, args.device, args.dtype, target=OURS, extra=extra)
    return suite.ours(variant, options, name=name)


def _peer(variant: ModelVariant, args: argparse.Namespace, at_once: int) -> ContenderSpec:
    """llama.cpp on the variant's own GGUF file."""
    name = f"llama.cpp, {at_once} at once"
    row = next((row for row in PEERS.get(variant.id, ()) if row.name == "llama.cpp"), None)
    if row is None:
        return ContenderSpec(name, PEER, unavailable=f"no GGUF file of {variant.id} is among the peers' options")
    try:
        folder = artifacts.fetch(variant).folder
    except IzwiError as error:
        return ContenderSpec(name, PEER, unavailable=str(error))
    told = {"at_once": at_once, "context": 2 * args.prompt + args.tokens + 64}
    return ContenderSpec(name, PEER, "peer", {"folder": str(folder), **row.options, **told}, told, (SOURCE,))


def _of_each(a: CaseResult, b: CaseResult) -> str:
    found = [(m.label, r.spread) for m in (_SERVED, _DECODED) if (r := ratio(a, b, m)) is not None]
    return f"{a.contender} / {b.contender}: " + ", ".join(
        f"{label} **{s.median:.2f}** ({s.low:.2f} to {s.high:.2f})" for label, s in found
    )


def _waits(cases: Sequence[CaseResult]) -> tuple[str, ...]:
    """p50 and p95 of each, and p95 of the last over the median of the first."""
    waited = {case.contender: values_of(case, _FIRST) for case in cases if case.runs}
    lines = [
        f"{name}: p50 {1000 * quantile(v, 0.5):.0f} ms, p95 {1000 * quantile(v, 0.95):.0f} ms of {len(v)}"
        for name, v in waited.items()
    ]
    if len(waited) == 2:
        (alone, a), (beside, b) = waited.items()
        lines.append(f"p95 {beside} / median {alone}: **{quantile(b, 0.95) / quantile(a, 0.5):.2f}**")
    return tuple(lines)


def _run(subject: str, workload: Workload, contenders: Sequence[ContenderSpec], plan: Plan) -> Table:
    cli.say(f"{subject}: {workload.title}")
    return Table(subject, workload, run_in_turn(workload, contenders, plan=plan, say=cli.say))


if __name__ == "__main__":
    what = "Many requests at once, through the engine."
    defaults = {"report": cli.RESULTS, "name": "serving", "loads": 1}
    sys.exit(cli.script("python -m benchmarks.serving", what, add=add_arguments, tables=tables, defaults=defaults))
