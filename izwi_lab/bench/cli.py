"""`izwi-lab bench`: measure models beside their peers, or on every backend of this machine."""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

from izwi_lab.errors import InvalidInputError, IzwiError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from izwi_lab.bench.harness import Plan
    from izwi_lab.bench.record import Table
    from izwi_lab.catalog.variant import ModelVariant

RESULTS = Path("benchmarks") / "results"

Add: TypeAlias = "Callable[[argparse.ArgumentParser], None]"
MakeTables: TypeAlias = "Callable[[argparse.Namespace, Plan, Path], list[Table]]"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the flags; imports nothing heavy."""
    parser.add_argument("models", nargs="*", help="catalog ids or names (default: every model that has a peer)")
    add_common_arguments(parser)
    parser.add_argument("--all", action="store_true", help="every model that has a peer, each beside all its peers")
    parser.add_argument("--backends", action="store_true", help="compare CUDA, MLX and CPU instead of peers")
    parser.add_argument("--task", choices=["chat", "tts", "asr"], help="only models of this task")
    parser.add_argument("--load-format", choices=["auto", "dummy"], default="auto", help="dummy: random weights")
    parser.add_argument("--speech", type=Path, metavar="PATH", help="audio file, or folder of the standard clips")


def add_common_arguments(parser: argparse.ArgumentParser) -> None:
    """The flags that every benchmark has: where ours runs, how often, against whom, and where the record goes."""
    parser.add_argument("--backend", choices=["torch", "mlx"], help="backend of ours (default: the router's choice)")
    parser.add_argument("--device", help="device of ours, such as cpu or cuda:0")
    parser.add_argument("--dtype", help="compute dtype of ours")
    parser.add_argument("--runs", type=int, default=5, help="counted runs of each contender (default: 5)")
    parser.add_argument("--warmup", type=int, default=1, help="runs before them that are not counted (default: 1)")
    parser.add_argument("--loads", type=int, default=3, help="timed loads, each in a fresh process (default: 3)")
    parser.add_argument("--retakes", type=int, default=0, metavar="N", help="take up to N disturbed rounds again")
    parser.add_argument("--timeout", type=float, default=600.0, metavar="SECONDS", help="bound on a load or a run")
    parser.add_argument("--peer", action=argparse.BooleanOptionalAction, default=True, help="run the peers too")
    parser.add_argument("--against", default="", metavar="TEXT", help="only peers whose name contains this")
    parser.add_argument("--peers", type=Path, metavar="FOLDER", help="where the peers are (default: benchmarks/peers)")
    parser.add_argument("--name", help="name of the record (default: starter, or backends)")
    parser.add_argument("--json", type=Path, metavar="OUT", help="write the record to this file")
    parser.add_argument(
        "--report",
        type=Path,
        nargs="?",
        const=RESULTS,
        metavar="FOLDER",
        help=f"save the record in FOLDER and write its README.md and plots again (default: {RESULTS})",
    )


def script(
    prog: str,
    what: str,
    *,
    defaults: Mapping[str, Any],
    add: Add = add_arguments,
    tables: MakeTables | None = None,
) -> int:
    """The main of a script in benchmarks/: parse the flags that `add` declares, `run`, errors as one line.

    defaults: of the flags, where they differ from those of `izwi-lab bench`. tables: as in `run`.
    """
    parser = argparse.ArgumentParser(prog=prog, description=what)
    add(parser)
    parser.set_defaults(**dict(defaults))
    try:
        return run(parser.parse_args(), tables=tables)
    except IzwiError as error:
        parser.error(str(error))


def run(args: argparse.Namespace, *, tables: MakeTables | None = None) -> int:
    """Measure, print the tables, save what was asked for. 0 when all of ours ran, 1 when one did not.

    tables: makes them from the flags, a plan and a folder for its own files; None: those of `izwi-lab bench`.
    """
    from izwi_lab.bench import record, report
    from izwi_lab.bench.harness import Plan

    plan = Plan(runs=args.runs, warmup=args.warmup, loads=args.loads, timeout_s=args.timeout, retakes=args.retakes)
    with tempfile.TemporaryDirectory(prefix="izwi-lab-bench-") as spare:
        made = (tables or _tables)(args, plan, Path(spare))
    across = getattr(args, "backends", False)
    taken = record.take(args.name or ("backends" if across else "starter"), made, plan)
    print(report.markdown(taken))
    if args.json:
        args.json.parent.mkdir(parents=True, exist_ok=True)
        args.json.write_text(taken.to_json(), encoding="utf-8")
    if args.report:
        path = taken.save(args.report)
        say(f"Saved {path} and {report.rebuild(args.report)}")
    ours = [case for table in taken.tables for case in table.cases if case.role == "ours"]
    # Across backends an absent device is a finding; what must run there is whatever the router accepted.
    broken = [case for case in ours if case.status != "ok" and not (across and case.status == "missing")]
    return 1 if broken or not any(case.runs for case in ours) else 0


def _tables(args: argparse.Namespace, plan: Plan, spare: Path) -> list[Table]:
    from izwi_lab.bench import suite

    variants = _variants(args)
    options = suite.Options(
        backend=args.backend,
        device=args.device,
        dtype=args.dtype,
        load_format=args.load_format,
        **_recording(args, spare),
    )
    if args.backends:
        return [suite.across_backends(variant, options, plan, say=say) for variant in variants]
    peers = (args.peers or suite.PEERS_FOLDER) if args.peer else None
    return [
        suite.against_peers(variant, options, plan, peers_folder=peers, against=args.against, say=say)
        for variant in variants
    ]


def _variants(args: argparse.Namespace) -> list[ModelVariant]:
    """The models that were named, or all that have peers, in the table's order; only those of --task."""
    from izwi_lab import catalog
    from izwi_lab.bench import suite

    if args.all and args.models:
        raise InvalidInputError("--all and names of models exclude each other.", hint="Leave one of them out.")
    names = args.models or suite.starters(args.peers or suite.PEERS_FOLDER)
    variants = [variant for variant in map(catalog.get, names) if args.task in (None, str(variant.task))]
    if not variants:
        raise InvalidInputError(f"None of {list(names)} does {args.task}.", hint="Leave --task out, or name others.")
    return variants


def _recording(args: argparse.Namespace, spare: Path) -> dict[str, Any]:
    """The recording for asr; without the standard clips only asr is impossible, and its rows say why."""
    from izwi_lab.bench import suite

    try:
        return {"recording": suite.record_speech(args.speech, spare)}
    except IzwiError as error:
        if args.speech is not None:
            raise
        return {"recording_missing": str(error)}


def say(line: str) -> None:
    """Progress, on standard error."""
    print(line, file=sys.stderr, flush=True)
