"""What a session's caches hold and cost, by kind of layer."""

from __future__ import annotations

from typing import Any

from izwi_lab.families.shared.nets.decoder.config import CONV
from izwi_lab.families.shared.steps import Session
from izwi_lab.families.shared.text_model import TextModel
from izwi_lab.lab import plots
from izwi_lab.lab.labels import check_text_model

_LISTS = ("k", "v", "k_scale", "v_scale", "conv")


def cache_table(model: TextModel, session: Session) -> Any:
    """A pandas DataFrame, a row per kind of layer: how many, positions held and room for, the ring if any, and bytes.

    held: positions that can still be looked at; a ring (a sliding window, a convolution) writes over older ones.
    The bytes add up to `session.nbytes`.
    """
    check_text_model(model)
    rows: dict[tuple[str, int], dict[str, Any]] = {}
    state, c = session.state, model.config
    for layer, kind in enumerate(c.layer_types):
        arrays = {name: state[name][layer] for name in _LISTS if state.get(name) and state[name][layer] is not None}
        ring, main = c.ring_of(layer), arrays.get("conv" if kind == CONV else "k")
        capacity = 0 if main is None else int(main.shape[1 if kind == CONV else 2])
        held = min(int(state["length"]), ring) if ring else int(state["length"])
        dtype = "" if main is None else str(main.dtype).rpartition(".")[2]
        row = rows.setdefault(
            (kind, capacity),
            {"kind": kind, "layers": 0, "held": held, "capacity": capacity, "ring": ring, "dtype": dtype, "bytes": 0},
        )
        row["layers"] += 1
        row["bytes"] += sum(int(a.nbytes) for a in arrays.values())
    return plots.pandas().DataFrame(list(rows.values()))
