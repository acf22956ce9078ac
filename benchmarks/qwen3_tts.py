"""How fast Qwen3-TTS speaks at full size, with random weights: ours beside the vendor's package.

    python -m benchmarks.qwen3_tts [MODEL ...] [--frames 50] [--text 40] [--runs 5] [--no-peer] …

"decode tokens/s" are frames (12.5 are one second of speech), of talker and code predictor without the codec; "first
output" is the first chunk of a stream for ours, and the whole for a peer that cannot stream. The device is the router's
choice or --device.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from benchmarks.speaking import speech
from izwi_lab import catalog
from izwi_lab.bench import cli, suite
from izwi_lab.bench.contender import ContenderSpec
from izwi_lab.bench.harness import Plan, run_in_turn
from izwi_lab.bench.record import Table

MODELS = ("Qwen3-TTS-12Hz-0.6B-CustomVoice",)
SOURCE = Path(__file__).resolve().parents[1]
OURS = "benchmarks.speaking:Speaking"
VENDOR = "benchmarks.peers.qwen_tts:QwenTts"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The models, how much is said, and the flags of every benchmark."""
    parser.add_argument(
        "models", nargs="*", metavar="MODEL", help=f"CustomVoice variants (default: {', '.join(MODELS)})"
    )
    parser.add_argument("--frames", type=int, default=50, help="frames of speech, 80 ms each (default: 50)")
    parser.add_argument("--text", type=int, default=40, metavar="TOKENS", help="tokens of text (default: 40)")
    cli.add_common_arguments(parser)


def tables(args: argparse.Namespace, plan: Plan, spare: Path) -> list[Table]:
    """One table for each model."""
    return [_table(catalog.get(name).id, args, plan) for name in args.models or MODELS]


def _table(name: str, args: argparse.Namespace, plan: Plan) -> Table:
    variant, workload = catalog.get(name), speech(args.frames, args.text)
    dtype = args.dtype or "bfloat16"
    options = suite.Options(backend=args.backend, device=args.device, dtype=dtype, target=OURS, load_format="dummy")
    contenders = [suite.ours(variant, options, name=f"izwi-lab {dtype}")]
    if args.peer:
        where = {"device": args.device if args.device and args.device.startswith("cuda") else "cpu", "dtype": dtype}
        path = (str(SOURCE), str(SOURCE / "tests"))
        contenders.append(ContenderSpec("qwen-tts", VENDOR, "peer", {"model": name, **where}, where, path))
    subject = f"{name}, random weights"
    cli.say(f"{subject}: {workload.title}")
    return Table(subject, workload, run_in_turn(workload, contenders, plan=plan, say=cli.say))


if __name__ == "__main__":
    what = "Qwen3-TTS at full size beside the vendor's package."
    defaults = {"name": "qwen3_tts", "loads": 1, "report": cli.RESULTS}
    sys.exit(cli.script("python -m benchmarks.qwen3_tts", what, add=add_arguments, tables=tables, defaults=defaults))
