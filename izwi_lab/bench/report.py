"""Reports: benchmark records as markdown tables and as a plot."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from izwi_lab.bench import record
from izwi_lab.bench.contender import METRICS, CaseResult, Metric
from izwi_lab.bench.harness import DISTURBED
from izwi_lab.bench.record import Record, Table
from izwi_lab.bench.stats import Ratio, Spread, ratios, same_input, share_of_limit, spread, values_of
from izwi_lab.errors import MissingExtraError

_LABELS = {m.name: m.label for m in METRICS} | {"load_s": "load s", "peak_bytes": "peak memory"}
_HEADLINE = {
    "chat": ("decode_tps", "prefill_tps"),
    "tts": ("real_time",),
    "asr": ("real_time",),
    "serving": ("served_tps", "real_time"),
    "first": ("first_s",),
}
_TOKENS_COMPARED = ("chat", "serving")


def table_markdown(table: Table) -> str:
    """One workload: a row per contender with medians and (lowest to highest), then ratios."""
    metrics = [m for m in METRICS if any(values_of(case, m) for case in table.cases)]
    extras = [extra for extra in _EXTRAS if any(extra[1](case, table) for case in table.cases)]
    header = ["", *(m.label for m in metrics), *(label for label, _ in extras), "load s", "peak MB"]
    rows = [header, ["---"] + ["---:"] * (len(header) - 1)]
    rows += [_row(case, metrics, [of(case, table) for _, of in extras]) for case in table.cases if case.runs]
    lines = [f"### {table.subject}: {table.workload.title}", ""]
    if any(case.runs for case in table.cases):
        lines += [*_lines(rows), ""]
    lines += [f"- {case.contender}: {case.status}, {_cell(case.reason)}" for case in table.cases if case.status != "ok"]
    lines += _disturbance(table)
    if not same_input(table.cases):
        lines += ["- The contenders did not read the same ids; compare with care."]
    lines += _agreement(table)
    lines += _ratio_lines(table)
    lines += [f"- {note}" for note in table.notes]
    return "\n".join(lines).rstrip() + "\n"


def markdown(rec: Record) -> str:
    """A whole record with its circumstances."""
    return "\n".join(
        [f"## {rec.name}, {rec.date[:10]}", "", *_circumstances(rec), "", *map(table_markdown, rec.tables)]
    )


def plot(rec: Record, path: Path) -> Path:
    """Bars of the headline figures, whiskers from the lowest run to the highest. Needs matplotlib."""
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise MissingExtraError("matplotlib", "bench") from error
    panels = [(table, name) for table in rec.tables for name in _HEADLINE.get(table.workload.task, ())]
    panels = [(t, n) for t, n in panels if any(_headline(case, n) for case in t.cases)]
    heights = [0.6 + 0.35 * sum(bool(c.runs) for c in table.cases) for table, _ in panels] or [1.0]
    figure = Figure(figsize=(8, sum(heights) + 0.4 * len(heights)), layout="constrained")
    axes = figure.subplots(len(heights), 1, squeeze=False, height_ratios=heights)[:, 0]
    for axis, (table, name) in zip(axes, panels, strict=False):
        _draw(axis, table, name)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)
    return path


def rebuild(folder: Path) -> Path:
    """Write `README.md` and plots from the records in `folder`: the newest of each name, the others as a list.

    Without matplotlib the plots are left out.
    """
    found = [(path, record.load(path)) for path in sorted(folder.glob("*.json"))]
    newest = {rec.name: (path, rec) for path, rec in sorted(found, key=lambda entry: entry[1].date)}
    older = [path for path, rec in found if newest[rec.name][0] != path]
    parts = ["# Benchmark results", "", _LEGEND, ""]
    for name, (path, rec) in sorted(newest.items()):
        parts += [markdown(rec), f"Raw figures: [{path.name}]({path.name})", ""]
        try:
            parts += [f"![{name}]({plot(rec, folder / f'{name}.png').name})", ""]
        except MissingExtraError as error:
            parts += [f"(no plot: {error})", ""]
    if older:
        parts += ["## Earlier", "", *(f"- [{path.name}]({path.name})" for path in older), ""]
    readme = folder / "README.md"
    readme.write_text("\n".join(parts), encoding="utf-8")
    return readme


_LEGEND = (
    "Written by `izwi-lab bench --report`; do not edit. Each figure is the median of the counted runs, in brackets the "
    "lowest and highest. All contenders of a table were loaded at once, each in its own process, and took turns; a "
    "ratio is formed run by run between neighbours in time, and its median is what to trust on a busy machine. "
    "*x real time*: seconds of audio per second of work. *first output*: to the first token, segment or audio. "
    "*peak MB*: the process's highest resident memory, weights mapped from disk included. *GB/s read*: weights touched "
    "once per token, and the keys and values that attention sees, per second of decoding; *of memory bandwidth*: that "
    "over what the machine read in a plain sum over 1 GB (on a GPU: a copy) in the same round. *memory / (weights + "
    "KV)*: the highest memory after loading, without what interpreter and framework hold before it. *tokens/s of all*: "
    "of several requests together, from the first one's start to the last one's end; *p95*: 95 of 100 are not above."
)


def _circumstances(rec: Record) -> list[str]:
    m, plan, revision = rec.machine, rec.plan, rec.revision
    places = ", ".join(m["accelerators"]) or "no accelerator"
    memory = f"{m['memory_bytes'] / 2**30:.0f} GB"
    commit = f"{revision['commit'][:12]}{' with changes' if revision['modified'] else ''}" if revision else "unknown"
    packages = ", ".join(f"{name} {version}" for name, version in rec.packages.items() if _canonical(name) in _SHOWN)
    return [
        f"- Machine: {m['processor']}, {m['cores']} cores, {memory}, {places}; {m['system']}; "
        f"load average at the end {m['load_average']}",
        f"- Python {m['python']}, {packages}",
        f"- {plan['runs']} runs after {plan['warmup']} warm-up, {plan['loads']} loads; commit {commit}; "
        f"`{rec.command}`",
    ]


_PEERS = ["onnxruntime", "faster-whisper", "ctranslate2", "llama-cpp-python", "transformers", "mlx-lm"]
_PEERS += ["mlx-audio", "qwen-tts"]
_SHOWN = frozenset(["izwi-lab", "torch", "mlx", "numpy", "tokenizers", *_PEERS])


def _canonical(distribution: str) -> str:
    return distribution.lower().replace("_", "-")


def _share(case: CaseResult, table: Table) -> str:
    found = share_of_limit(case, table.cases)
    if found is None:
        return ""
    s = found.spread
    span = f" ({100 * s.low:.0f} to {100 * s.high:.0f})" if s.count > 1 else ""
    return f"{100 * s.median:.0f} %{span}"


def _memory_ratio(case: CaseResult, table: Table) -> str:
    found = case.memory_ratio
    return "" if found is None else f"{found:.2f}"


_EXTRAS: tuple[tuple[str, Callable[[CaseResult, Table], str]], ...] = (
    ("of memory bandwidth", _share),
    ("memory / (weights + KV)", _memory_ratio),
)


def _row(case: CaseResult, metrics: Iterable[Metric], extras: Sequence[str]) -> list[str]:
    name = f"**{case.contender}**" if case.role == "ours" else case.contender
    cells = [_spread(spread(values_of(case, m)), m.digits) for m in metrics]
    peak = f"{case.peak_bytes / 1e6:.0f}"
    if case.device_bytes:
        peak += f" + {case.device_bytes / 1e6:.0f} on the device"
    return [name, *cells, *extras, _spread(spread(case.load_s), 2), peak]


def _disturbance(table: Table) -> list[str]:
    """How busy other programs kept the machine, where that is worth knowing."""
    shares = [run.others for case in table.cases for run in case.runs if run.others is not None]
    discarded = max((case.discarded for case in table.cases), default=0)
    lines = []
    if shares and max(shares) > DISTURBED:
        lines.append(f"- Other programs used up to {100 * max(shares):.0f} % of the processors during a run.")
    if discarded:
        lines.append(f"- {discarded} rounds were disturbed by other programs and taken again.")
    return lines


def _agreement(table: Table) -> list[str]:
    """Which contenders of a chat wrote the same tokens as ours (kernels round differently, so not all need to)."""
    outputs = {c.contender: {run.output for run in c.runs} for c in table.cases if c.runs and c.runs[0].output}
    if table.workload.task not in _TOKENS_COMPARED or len(outputs) < 2:
        return []
    (first, wrote), *others = outputs.items()
    same = [name for name, found in others if found == wrote]
    rest = [name for name, found in others if found != wrote]
    parts = [f"the same tokens as {first}: {', '.join(same)}"] if same else []
    parts += [f"other tokens than {first}: {', '.join(rest)}"] if rest else []
    return [f"- Wrote {'; '.join(parts)}."]


def _ratio_lines(table: Table) -> list[str]:
    found = ratios(table.cases, reference=table.reference_case)
    couples = sorted({(r.ours, r.peer) for r in found}, key=lambda pair: pair[1])
    lines = []
    for ours, peer in couples:
        shown = ", ".join(_ratio(r) for r in found if (r.ours, r.peer) == (ours, peer) and r.metric in _QUOTED)
        if shown:
            lines.append(f"- {ours} / {peer}: {shown}")
    return lines


_QUOTED = ("real_time", "served_tps", "prefill_tps", "decode_tps", "first_s", "cpu_s", "load_s", "peak_bytes")


def _ratio(found: Ratio) -> str:
    s = found.spread
    span = f" ({s.low:.2f} to {s.high:.2f})" if s.count > 1 else ""
    arrow = "" if found.better == "higher" else ", lower is better"
    return f"{_LABELS[found.metric]} **{s.median:.2f}**{span}{arrow}"


def _spread(found: Spread | None, digits: int) -> str:
    if found is None:
        return ""
    middle = f"{found.median:.{digits}f}"
    return middle if found.count == 1 else f"{middle} ({found.low:.{digits}f} to {found.high:.{digits}f})"


def _lines(rows: Sequence[Sequence[str]]) -> list[str]:
    return ["| " + " | ".join(_cell(cell) for cell in row) + " |" for row in rows]


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")


def _headline(case: CaseResult, name: str) -> Spread | None:
    return spread(values_of(case, next(m for m in METRICS if m.name == name)))


def _draw(axis: Any, table: Table, name: str) -> None:
    cases = [(case, found) for case in table.cases if (found := _headline(case, name)) is not None][::-1]
    middles = [found.median for _, found in cases]
    whiskers = [
        [found.median - found.low for _, found in cases],
        [found.high - found.median for _, found in cases],
    ]
    colours = ["#2f6f9f" if case.role == "ours" else "#b8b8b8" for case, _ in cases]
    axis.barh([case.contender for case, _ in cases], middles, xerr=whiskers, color=colours, capsize=3)
    axis.set_title(f"{table.subject}: {_LABELS[name]}", loc="left", fontsize=10)
    for row, value in enumerate(middles):
        axis.text(value, row + 0.28, f" {value:.{0 if value >= 100 else 1}f}", va="center", fontsize=8)
    axis.set_xlim(0, 1.15 * max([f.high for _, f in cases if math.isfinite(f.high)] or [1.0]))
    axis.spines[["top", "right"]].set_visible(False)
