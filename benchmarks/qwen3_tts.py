"""How fast Qwen3-TTS speaks at full size, with random weights: ours beside the vendor's package, on MLX mlx-audio.

    python -m benchmarks.qwen3_tts [MODEL ...] [--frames 50] [--text 40] [--runs 5] [--no-peer] …
    python -m benchmarks.qwen3_tts --backend mlx --frames 12 Qwen3-TTS-12Hz-0.6B-CustomVoice-4bit

"decode tokens/s" are frames (12.5 are one second of speech), of talker and code predictor without the codec; "first
output" is the first chunk of a stream for ours, and the whole for the peers, which are asked for the whole. The device
is the router's choice or --device.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from benchmarks.speaking import speech
from izwi_lab import catalog
from izwi_lab.backends.router import BackendRouter
from izwi_lab.bench import cli, suite
from izwi_lab.bench.contender import ContenderSpec
from izwi_lab.bench.harness import Plan, run_in_turn
from izwi_lab.bench.record import Table
from izwi_lab.catalog.variant import ModelVariant
from izwi_lab.errors import BackendUnavailableError, InvalidInputError

MODELS = ("Qwen3-TTS-12Hz-0.6B-CustomVoice",)
MOST = 2048  # frames, and tokens of text
SOURCE = Path(__file__).resolve().parents[1]
OURS = "benchmarks.speaking:Speaking"
VENDOR = "benchmarks.peers.qwen_tts:QwenTts"
MLX_AUDIO = "benchmarks.peers.mlx_audio:MlxAudio"


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
    for name in args.models or MODELS:
        variant = catalog.get(name)
        if str(variant.family) != "qwen3_tts" or not variant.voices:
            raise InvalidInputError(f"{name} has no preset voices of Qwen3-TTS.", hint=f"Such as {MODELS[0]}.")
    for flag, value in (("--frames", args.frames), ("--text", args.text)):
        if not 1 <= value <= MOST:
            raise InvalidInputError(f"{flag} is {value}.", hint=f"Expected 1 to {MOST}.")
    return [_table(catalog.get(name).id, args, plan) for name in args.models or MODELS]


def _table(name: str, args: argparse.Namespace, plan: Plan) -> Table:
    variant, workload = catalog.get(name), speech(args.frames, args.text)
    dtype = args.dtype or "bfloat16"
    options = suite.Options(backend=args.backend, device=args.device, dtype=dtype, target=OURS, load_format="dummy")
    contenders = [
        suite.ours(
            variant, options, name=f"izwi-lab {dtype if variant.quantisation == 'none' else variant.quantisation}"
        )
    ]
    if args.peer:
        contenders.append(_peer(variant, options))
    subject = f"{name}, random weights"
    cli.say(f"{subject}: {workload.title}")
    return Table(subject, workload, run_in_turn(workload, contenders, plan=plan, say=cli.say))


def _peer(variant: ModelVariant, options: suite.Options) -> ContenderSpec:
    """mlx-audio where ours runs on MLX, else the vendor's package; on the same device."""
    try:
        plan = BackendRouter().select(variant, backend=options.backend, device=options.device, dtype=options.dtype)
    except BackendUnavailableError as error:
        return ContenderSpec("peer", "", "peer", unavailable=str(error))
    mlx = plan.backend == "mlx"
    device = plan.device if mlx or plan.device.startswith("cuda") else "cpu"
    where = {"device": device, "dtype": plan.dtype}
    path = (str(SOURCE), str(SOURCE / "tests"))
    name, target = ("mlx-audio", MLX_AUDIO) if mlx else ("qwen-tts", VENDOR)
    return ContenderSpec(name, target, "peer", {"model": variant.id, **where}, where, path)


if __name__ == "__main__":
    what = "Qwen3-TTS at full size beside the vendor's package, on MLX beside mlx-audio."
    defaults = {"name": "qwen3_tts", "loads": 1, "report": cli.RESULTS}
    sys.exit(cli.script("python -m benchmarks.qwen3_tts", what, add=add_arguments, tables=tables, defaults=defaults))
