"""BackendRouter: from a model and what was asked for to a BackendPlan, with a reason for it and against the others.

Who decides: an explicit argument, else the environment (IZWI_BACKEND, IZWI_ENABLE_MLX_RUNTIME), else the configuration
file, else what was detected. Nothing is replaced without a word: what was asked for and is not on this machine raises,
and an MLX that was asked for in the settings but has no net for a model gives way to torch, which the plan says.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from izwi_lab import settings as settings_module
from izwi_lab.backends import detect, host
from izwi_lab.backends.base import BackendPlan, Rejection
from izwi_lab.backends.choice import Choice, ExecutionBackend, check_dtype, choose
from izwi_lab.backends.detect import Device, Survey
from izwi_lab.catalog import capabilities, fit, get
from izwi_lab.catalog.variant import ModelVariant
from izwi_lab.errors import BackendUnavailableError
from izwi_lab.settings import Settings

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["BackendRouter", "ExecutionBackend"]

_OLDEST_BFLOAT16 = 80  # compute capability 8.0 (Ampere) is the first with bfloat16 in hardware


@dataclass(frozen=True, slots=True)
class _Candidate:
    device: Device
    dtype: str
    need_bytes: int
    warning: str = ""

    @property
    def too_large(self) -> str:
        """Why the model cannot fit even on the empty device; empty when it can, or when that is not known."""
        has = self.device.memory_bytes
        if self.need_bytes <= has or has == 0:
            return ""
        return f"it needs {self.need_bytes / 1e9:.1f} GB in {self.dtype}, the device has {has / 1e9:.1f} GB"


class BackendRouter:
    """Chooses where a model runs. Holds nothing but its settings; safe to share.

    config: settings to use instead of reading the environment and the configuration file at each call.
    """

    def __init__(self, config: Settings | None = None, *, survey: Callable[[], Survey] = detect.survey) -> None:
        self._config = config
        self._survey = survey

    def select(
        self,
        variant: ModelVariant | str,
        *,
        backend: str | None = None,
        device: str | None = None,
        dtype: str | None = None,
        context: int | None = None,
    ) -> BackendPlan:
        """The plan for a model.

        Args:
            variant: the model, or its name.
            backend: "torch", "mlx", a device ("cpu", "cuda:0", "mps"), or both ("torch:cuda:0", "mlx:gpu"); None and
                "auto" leave it open.
            device: "cpu", "cuda", "cuda:1", "mps" or "gpu", where `backend` names none.
            dtype: compute dtype; None takes bfloat16 where the device is fast at it, else float32 (on CPUs) or float16.
            context: tokens to reckon the cache with; None takes 4096 or the model's own limit.

        Raises:
            InvalidInputError: an argument or a setting that means nothing.
            BackendUnavailableError: what was asked for cannot serve this model, or nothing here can.
        """
        variant = get(variant)
        if reason := capabilities(variant).reason:
            raise BackendUnavailableError(f"{variant.id} cannot run: {reason}.")
        config = self._config if self._config is not None else settings_module.load()
        choice = choose(config, backend, device)
        survey = self._survey()
        sorted_out = _SortedOut(choice)
        for found in _in_order(survey.devices, config, choice, variant):
            refusal = _refusal(found, variant, config, choice)
            sorted_out.add(found, refusal or _candidate(found, variant, config, dtype, context))
        if not sorted_out.serving and not sorted_out.may_fall_back:
            raise sorted_out.error(variant, survey)
        chosen, *others = sorted_out.serving or sorted_out.skipped
        if sorted_out.serving:
            others += sorted_out.skipped
        return BackendPlan(
            backend=chosen.device.backend,
            device=chosen.device.name,
            dtype=chosen.dtype,
            reason=_reason(chosen, sorted_out, config),
            quantisation=variant.quantisation,
            memory_bytes=chosen.need_bytes,
            rejected=(
                *survey.missing,
                *(Rejection(d.backend, d.name, why) for d, why in sorted_out.refused),
                *(_not_needed(o, chosen, choice) for o in others),
            ),
        )


class _SortedOut:
    """The devices of this machine by what they can do for one request."""

    def __init__(self, choice: Choice) -> None:
        self.choice = choice
        self.serving: list[_Candidate] = []  # asked for (or nothing was), and able
        self.skipped: list[_Candidate] = []  # able, but something else was asked for
        self.refused: list[tuple[Device, str]] = []
        self.wished_but: str = ""  # why the MLX that a setting asks for does not serve this model

    def add(self, device: Device, verdict: _Candidate | str) -> None:
        """Sort in a device: a candidate, or the reason why it cannot serve."""
        wished = self.choice.accepts(device)
        if isinstance(verdict, str):
            self.refused.append((device, verdict))
            if wished and device.backend == ExecutionBackend.MLX:
                self.wished_but = self.wished_but or verdict
        elif verdict.too_large and not (self.choice.binding and wished):
            self.refused.append((device, verdict.too_large))
        else:
            (self.serving if wished else self.skipped).append(verdict)

    @property
    def may_fall_back(self) -> bool:
        """An MLX that a setting (not an argument) asks for gives way to torch where it has no net for the model."""
        return bool(
            self.skipped and self.wished_but and not self.choice.binding and self.choice.backend == ExecutionBackend.MLX
        )

    def error(self, variant: ModelVariant, survey: Survey) -> BackendUnavailableError:
        """Every backend and device with its reason."""
        rows = [*survey.missing, *(Rejection(d.backend, d.name, why) for d, why in self.refused)]
        reasons = "\n".join(f"  {r.backend}:{r.device}: {r.reason}" for r in rows)
        asked = "Nothing here" if self.choice.open else f"{self.choice}, asked for by {self.choice.source},"
        can = "can" if self.choice.open else "cannot"
        able = ", ".join(f"{c.device.backend}:{c.device.name}" for c in self.skipped)
        return BackendUnavailableError(
            f"{asked} {can} serve {variant.id}:\n{reasons}\n", hint=f"It can run on: {able}." if able else ""
        )


def _in_order(devices: tuple[Device, ...], config: Settings, choice: Choice, variant: ModelVariant) -> list[Device]:
    """Detection's order (accelerators first, torch before MLX on a CPU), MLX first where it was asked for."""
    mlx_first = choice.open and config.mlx is True
    hint_mlx = capabilities(variant).backend_hint == "mlx"

    def rank(device: Device) -> tuple[bool, bool]:
        mlx = device.backend == ExecutionBackend.MLX
        return (mlx_first and not mlx, not (hint_mlx and mlx and device.kind == "gpu"))

    return sorted(devices, key=rank)


def _refusal(device: Device, variant: ModelVariant, config: Settings, choice: Choice) -> str:
    """Why a device that is there cannot serve; empty when it can."""
    if device.backend not in capabilities(variant).backends:
        return f"the family {variant.family} has no {device.backend} net"
    if device.backend == ExecutionBackend.MLX and config.mlx is False:
        if choice.binding and choice.backend == ExecutionBackend.MLX:
            return ""
        return f"{config.sources.get('mlx', 'the settings')} forbids MLX"
    return ""


def _candidate(
    device: Device, variant: ModelVariant, config: Settings, dtype: str | None, context: int | None
) -> _Candidate:
    if dtype is not None:
        chosen = check_dtype(dtype, "the argument")
    elif config.dtype is not None:
        chosen = check_dtype(config.dtype, config.sources.get("dtype", "the settings"))
    else:
        chosen = default_dtype(device)
    estimate = fit(device, variant, context=context, dtype=chosen)
    warning = ""
    if estimate.total_bytes > device.memory_bytes > 0:
        warning = f"it may not fit, {estimate.explanation}"
    elif not estimate.fits:
        warning = f"other programs use the memory, {estimate.explanation}"
    elif device.kind == "cpu" and chosen != "float32" and chosen != default_dtype(device):
        warning = f"this CPU has no fast {chosen}"
    return _Candidate(device, chosen, estimate.total_bytes, warning)


def default_dtype(device: Device) -> str:
    """bfloat16 where the device multiplies it in hardware, else float32 on CPUs and float16 on old NVIDIA GPUs."""
    if device.kind == "cpu":
        fast = device.backend == ExecutionBackend.TORCH and host.has_fast_bfloat16(device.features)
        return "bfloat16" if fast else "float32"
    for feature in device.features:
        if feature.startswith("sm_") and int(feature.removeprefix("sm_")) < _OLDEST_BFLOAT16:
            return "float16"
    return "bfloat16"


def _not_needed(other: _Candidate, chosen: _Candidate, choice: Choice) -> Rejection:
    if not choice.open and not choice.accepts(other.device):
        why = f"{choice} was asked for by {choice.source}"
    elif other.device.kind == chosen.device.kind == "cpu":
        why = f"{chosen.device.backend} is preferred on CPUs"
    else:
        why = f"{chosen.device.backend}:{chosen.device.name} comes first"
    return Rejection(other.device.backend, other.device.name, why)


def _reason(chosen: _Candidate, sorted_out: _SortedOut, config: Settings) -> str:
    device, choice = chosen.device, sorted_out.choice
    if not sorted_out.serving:
        why = f"{choice.source} asks for {choice}, but {sorted_out.wished_but}, so torch serves it"
    elif not choice.open:
        why = f"{choice} was asked for by {choice.source}"
        if config.mlx is False and device.backend == ExecutionBackend.MLX:
            why += f", which goes before {config.sources.get('mlx', 'the settings')}"
    elif config.mlx is True and device.backend == ExecutionBackend.MLX:
        why = f"{config.sources.get('mlx', 'the settings')} prefers MLX"
    elif device.kind == "cpu":
        why = "no accelerator here can serve it, so the CPU does"
    else:
        why = f"{device.label or device.name} is the fastest device here"
    return f"{why}; {chosen.warning}" if chosen.warning else why
