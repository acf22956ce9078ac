"""How fast one token follows another: ours beside its peers, and beside what the machine's memory allows.

    python -m benchmarks.decode [PART ...] [--models MODEL ...] [--runs 5] [--no-peer] …

Parts, each a table or two in one record (all of them by default):
  peers      SmolLM2 Q4_1 and Gemma-3-270m Q4_K_M: llama.cpp, transformers bf16
  mlx        SmolLM2 on MLX: mlx-lm, both reading one folder of the same 4-bit weights
  bandwidth  Qwen3-0.6B and Gemma-3-1b-it at full size with random weights, bf16 and 4 bits
  lookup     a text that repeats itself, with and without speculative decoding by prompt lookup

The device is the router's choice or --device; a peer that is not installed is a row that says so.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from izwi_lab import catalog
from izwi_lab.backends.router import BackendRouter
from izwi_lab.bench import cli, suite, workloads
from izwi_lab.bench.contender import ContenderSpec
from izwi_lab.bench.harness import Plan, run_in_turn
from izwi_lab.bench.record import Table
from izwi_lab.catalog.variant import ModelVariant
from izwi_lab.errors import BackendUnavailableError, InvalidInputError, IzwiError

PARTS = {
    "peers": ("SmolLM2-135M-Instruct", "Gemma-3-270m"),
    "mlx": ("SmolLM2-135M-Instruct",),
    "bandwidth": ("Qwen3-0.6B", "Gemma-3-1b-it"),
    "lookup": ("SmolLM2-135M-Instruct",),
}
OURS = "benchmarks.decoding:Decoding"
SOURCE = str(Path(__file__).resolve().parents[1])


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The parts, and the flags of every benchmark."""
    parser.add_argument("parts", nargs="*", metavar="PART", help=f"of {', '.join(PARTS)} (default: all)")
    parser.add_argument("--models", nargs="+", metavar="MODEL", help="only these, in the parts that have them")
    cli.add_common_arguments(parser)


def tables(args: argparse.Namespace, plan: Plan, spare: Path) -> list[Table]:
    """The tables of the parts that were asked for."""
    options = suite.Options(backend=args.backend, device=args.device, dtype=args.dtype, target=OURS)
    peers = (args.peers or suite.PEERS_FOLDER) if args.peer else None
    make = {
        "peers": lambda variant: beside_peers(variant, options, plan, peers=peers, against=args.against),
        "mlx": lambda variant: on_mlx(variant, options, plan, spare / variant.id, peers=peers is not None),
        "bandwidth": lambda variant: at_full_size(variant, options, plan),
        "lookup": lambda variant: with_lookup(variant, options, plan),
    }
    return [make[part](catalog.get(id)) for part, id in _chosen(args.parts, args.models or ())]


def _chosen(parts: Sequence[str], models: Sequence[str]) -> list[tuple[str, str]]:
    """(part, model) of every table that was asked for."""
    if unknown := set(parts) - set(PARTS):
        raise InvalidInputError(f"No part is called {sorted(unknown)}.", hint=f"Parts: {', '.join(PARTS)}.")
    only = {catalog.get(name).id for name in models}
    chosen = [(part, id) for part in parts or PARTS for id in PARTS[part] if not only or id in only]
    if not chosen:
        raise InvalidInputError("No part has these models.", hint=f"Parts and models: {PARTS}.")
    return chosen


def beside_peers(
    variant: ModelVariant, options: suite.Options, plan: Plan, *, peers: Path | None, against: str
) -> Table:
    """Ours, the programs that run the same weights, and the memory."""
    limits = [limit(variant, options)]
    return suite.against_peers(variant, options, plan, peers_folder=peers, against=against, limits=limits, say=cli.say)


def limit(variant: ModelVariant, options: suite.Options) -> ContenderSpec:
    """The memory that ours reads on the device where the router puts it."""
    target = "benchmarks.peers.memory_read:MemoryRead"
    try:
        plan = BackendRouter().select(variant, backend=options.backend, device=options.device, dtype=options.dtype)
    except BackendUnavailableError as error:
        return ContenderSpec("memory read", target, "limit", unavailable=str(error))
    where = {"backend": plan.backend, "device": plan.device}
    return ContenderSpec("memory read", target, "limit", where, where, (SOURCE,))


def on_mlx(variant: ModelVariant, options: suite.Options, plan: Plan, folder: Path, *, peers: bool) -> Table:
    """Ours and mlx-lm on one MLX folder made from the GGUF file, in one dtype."""
    workload, reason, device, dtype = workloads.chat(), "", "", ""
    try:
        wanted = options.device if options.device in ("cpu", "gpu") else None
        device = BackendRouter().select(variant, backend="mlx", device=wanted).device
        dtype = "float32" if device == "cpu" else "float16"
        if device == "cpu":  # MLX's processor build is for correctness: less work, for both
            workload = workloads.chat(prompt_tokens=64, tokens=32)
        from benchmarks import mlx_folder

        mlx_folder.write(variant, folder, dtype=dtype)
    except IzwiError as error:
        reason = str(error)
    here = {"backend": "mlx", "device": device, "dtype": dtype}
    contenders = [ContenderSpec("izwi-lab", OURS, "ours", {"model": str(folder), **here}, here, (SOURCE,), reason)]
    if peers:
        path = {"folder": str(folder), "device": device}
        contenders.append(ContenderSpec("mlx-lm", "benchmarks.peers.mlx_lm:MlxLm", "peer", path, {}, (SOURCE,), reason))
    return _run(f"{variant.id} on MLX", workload, contenders, plan)


def at_full_size(variant: ModelVariant, options: suite.Options, plan: Plan) -> Table:
    """Random weights, bf16 and 4 bits, beside the memory's own speed."""
    dense = replace(options, load_format="dummy", dtype=options.dtype or "bfloat16")
    packed = replace(dense, extra={"bits": 4, "group_size": 64})
    contenders = [
        suite.ours(variant, dense, name="izwi-lab bf16" if dense.dtype == "bfloat16" else f"izwi-lab {dense.dtype}"),
        suite.ours(variant, packed, name="izwi-lab 4 bits"),
        limit(variant, options),
    ]
    # Making up a billion weights takes longer than all the runs: one timed load will do.
    return _run(f"{variant.id}, random weights", workloads.chat(synthetic=True), contenders, replace(plan, loads=1))


def with_lookup(variant: ModelVariant, options: suite.Options, plan: Plan) -> Table:
    """One model twice, the second guessing ahead; both must say the same."""
    guessing = replace(options, extra={"lookup": True})
    contenders = [
        suite.ours(variant, guessing, name="prompt lookup"),
        suite.ours(variant, options, name="one by one"),
    ]
    table = _run(f"{variant.id}, speculative", workloads.repetitive(), contenders, plan)
    return replace(table, reference="one by one")


def _run(subject: str, workload: workloads.Workload, contenders: Sequence[ContenderSpec], plan: Plan) -> Table:
    cli.say(f"{subject}: {workload.title}")
    return Table(subject, workload, run_in_turn(workload, contenders, plan=plan, say=cli.say))


if __name__ == "__main__":
    what = "Decoding beside the peers and beside the memory's own speed."
    defaults = {"report": cli.RESULTS, "name": "decode"}
    sys.exit(cli.script("python -m benchmarks.decode", what, add=add_arguments, tables=tables, defaults=defaults))
