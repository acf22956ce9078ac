"""Record: one benchmark run as JSON, with everything needed to read it later or take it again."""

from __future__ import annotations

import datetime
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from izwi_lab.bench import machine
from izwi_lab.bench.contender import METRICS, CaseResult, Measurement, Workload, plain
from izwi_lab.bench.harness import Plan
from izwi_lab.bench.stats import ratios, spread, values_of
from izwi_lab.errors import InvalidInputError

SCHEMA = 1


@dataclass(frozen=True, slots=True)
class Table:
    """One workload and the results of its contenders. reference: the name of the case the others are divided by.

    notes: lines to read under it.
    """

    subject: str
    workload: Workload
    cases: tuple[CaseResult, ...]
    reference: str = ""
    notes: tuple[str, ...] = ()

    @property
    def reference_case(self) -> CaseResult | None:
        """The case of that name; None compares ours with the peers."""
        return next((c for c in self.cases if c.contender == self.reference), None)


@dataclass(frozen=True, slots=True)
class Record:
    """Some tables and the circumstances under which they were taken. date: ISO 8601, UTC."""

    name: str
    date: str
    tables: tuple[Table, ...]
    plan: Mapping[str, Any]
    machine: Mapping[str, Any]
    packages: Mapping[str, str]
    revision: Mapping[str, Any]
    command: str

    def to_json(self) -> str:
        """JSON with a derived `summary` in every table: medians, spreads and ratios."""
        body = {"schema": SCHEMA, **plain(self)}
        for shown, table in zip(body["tables"], self.tables, strict=True):
            shown["summary"] = _summary(table)
        return json.dumps(_rounded(body), indent=1, ensure_ascii=False) + "\n"

    @staticmethod
    def from_json(text: str) -> Record:
        """Read back what `to_json` wrote. The summary is derived and not read."""
        body = json.loads(text)
        if not isinstance(body, dict) or body.get("schema") != SCHEMA:
            found = body.get("schema") if isinstance(body, dict) else type(body).__name__
            raise InvalidInputError(
                f"A benchmark record of schema {SCHEMA} was expected, got {found!r}.",
                hint="Take the benchmark again with this version.",
            )
        fields = {name: body[name] for name in ("name", "date", "plan", "machine", "packages", "revision", "command")}
        return Record(**fields, tables=tuple(_table(t) for t in body["tables"]))

    def save(self, folder: Path) -> Path:
        """Write `<name>-<date>.json` into `folder`; an earlier one of the same minute is replaced."""
        folder.mkdir(parents=True, exist_ok=True)
        stamp = datetime.datetime.fromisoformat(self.date).strftime("%Y%m%d-%H%M")
        path = folder / f"{self.name}-{stamp}.json"
        path.write_text(self.to_json(), encoding="utf-8")
        return path


def take(name: str, tables: Sequence[Table], plan: Plan) -> Record:
    """A record of `tables`, with the circumstances as they are now."""
    imported = {package for table in tables for case in table.cases for package in case.packages}
    return Record(
        name=name,
        date=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        tables=tuple(_clean(table) for table in tables),
        plan=plain(plan),
        machine=machine.machine(),
        packages=machine.versions(imported),
        revision=machine.revision(),
        command=machine.command_line(),
    )


def load(path: Path) -> Record:
    """Read a record from a file."""
    return Record.from_json(path.read_text(encoding="utf-8"))


def _clean(table: Table) -> Table:
    """Without the import lists, which `packages` now sums up, and without folders of this machine."""
    cases = tuple(
        replace(case, reason=machine.portable(case.reason), packages=(), facts=_portable(case.facts))
        for case in table.cases
    )
    return replace(table, workload=replace(table.workload, data=_portable(table.workload.data)), cases=cases)


def _portable(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {k: _portable(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [_portable(v) for v in value]
    return machine.portable(value) if isinstance(value, str) else value


def _summary(table: Table) -> dict[str, Any]:
    medians = {
        case.contender: {
            **{m.name: plain(s) for m in METRICS if (s := spread(values_of(case, m))) is not None},
            **({"load_s": plain(spread(case.load_s))} if case.load_s else {}),
        }
        for case in table.cases
    }
    return {"figures": medians, "ratios": plain(ratios(table.cases, reference=table.reference_case))}


def _table(body: Mapping[str, Any]) -> Table:
    cases, notes = tuple(map(_case, body["cases"])), tuple(body.get("notes", ()))
    return Table(body["subject"], Workload(**body["workload"]), cases, body["reference"], notes)


def _case(body: Mapping[str, Any]) -> CaseResult:
    lists = {name: tuple(body[name]) for name in ("load_s", "packages")}
    return CaseResult(**{**body, **lists, "runs": tuple(Measurement(**run) for run in body["runs"])})


def _rounded(value: Any) -> Any:
    """Floats to six significant digits: a wall clock has no more."""
    if isinstance(value, dict):
        return {k: _rounded(v) for k, v in value.items()}
    if isinstance(value, list):
        return [_rounded(v) for v in value]
    return float(f"{value:.6g}") if isinstance(value, float) else value
