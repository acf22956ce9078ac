"""How a loaded model shows itself in a cell."""

from __future__ import annotations

from izwi_lab.families.protocols import Model


def describe(model: Model) -> str:
    """One line: the variant, where it runs, and the bytes it holds."""
    plan = model.plan
    where = f"{plan.backend} {plan.device} {plan.dtype}"
    return f"{type(model).__name__}({model.variant.id}, {where}, {model.nbytes / 1e6:.0f} MB)"
