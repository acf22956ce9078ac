"""What an engine counts and times, as one table."""

from __future__ import annotations

from typing import Any

from izwi_lab.engine.instruments import Counter, Gauge
from izwi_lab.engine.metrics import EngineMetrics
from izwi_lab.lab import plots

_TIMED = ("count", "mean", "p50", "p90", "p99")


def metrics_table(metrics: EngineMetrics, *, model: str | None = None) -> Any:
    """A pandas DataFrame, a row per metric and model: value of what is counted, spread of what is timed.

    Times are in seconds; quantiles are estimated from buckets. model: only its rows.

    Raises:
        MissingExtraError: without pandas.

    >>> izwi.lab.metrics_table(engine.metrics)      # doctest: +SKIP
    """
    rows: list[dict[str, Any]] = []
    for one in metrics.instruments():
        if isinstance(one, (Counter, Gauge)):
            for name, *rest in one.series():
                rows.append({"metric": " ".join([one.name, *rest]), "model": name, "value": one.value(name, *rest)})
    rows += [dict(row) for row in metrics.rows()]
    kept = [row | {"metric": row["metric"].removeprefix("izwi:")} for row in rows if model in (None, row["model"])]
    frame = plots.pandas().DataFrame(kept, columns=["model", "metric", "value", *_TIMED])
    return frame.sort_values(["model", "metric"], kind="stable").reset_index(drop=True)
