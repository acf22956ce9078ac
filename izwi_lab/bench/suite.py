"""Which contenders meet on which workload: ours beside its peers, or ours on every backend."""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import ModuleType
from typing import Any

from izwi_lab import artifacts
from izwi_lab.backends.detect import survey
from izwi_lab.backends.router import BackendRouter
from izwi_lab.bench import workloads
from izwi_lab.bench.contender import ContenderSpec, Workload
from izwi_lab.bench.harness import Plan, Say, run_in_turn
from izwi_lab.bench.record import Table
from izwi_lab.catalog.variant import ModelVariant, Task
from izwi_lab.errors import BackendUnavailableError, InvalidInputError, IzwiError, WrongTaskError

_SOURCE = Path(__file__).resolve().parents[2]
CLIPS_FOLDER = _SOURCE / "tests" / "data" / "librivox"
PEERS_FOLDER = _SOURCE / "benchmarks" / "peers"

# Every place a model can run; the router says which of them exist here, and why the others do not.
PLACES = (("torch", "cuda:0"), ("torch", "mps"), ("torch", "cpu"), ("mlx", "gpu"), ("mlx", "cpu"))
REFERENCE_PLACE = "torch cpu"


@dataclass(frozen=True, slots=True)
class Options:
    """How ours is loaded, and where the material lies. recording: a .npy made by `record_speech`.

    target: the class of ours; extra: options of it beside those of `Ours`.
    """

    backend: str | None = None
    device: str | None = None
    dtype: str | None = None
    load_format: str = "auto"
    target: str = "izwi_lab.bench.ours:Ours"
    extra: Mapping[str, Any] = field(default_factory=dict)
    recording: Workload | None = None
    recording_missing: str = ""


def record_speech(source: Path | None, folder: Path) -> Workload:
    """The asr workload of `source`: a folder of the standard clips (default: the checkout's), or one audio file.

    The samples are written to `folder` once, for every contender to map. A file of one's own has no reference text,
    so its word error is not measured, and its language is detected.
    """
    import numpy as np

    source = source or CLIPS_FOLDER
    if source.is_file():
        from izwi_lab.audio import Audio

        samples, reference = Audio.open(source).resample(workloads.SPEECH_HZ).samples, ""
    else:
        samples, reference = workloads.librivox(source)
    target = folder / "speech.npy"
    np.save(target, samples)
    seconds = samples.size / workloads.SPEECH_HZ
    return workloads.asr(target, seconds=seconds, reference=reference, language="en" if reference else None)


def against_peers(
    variant: ModelVariant,
    options: Options,
    plan: Plan,
    *,
    peers_folder: Path | None = PEERS_FOLDER,
    against: str = "",
    limits: Sequence[ContenderSpec] = (),
    say: Say,
) -> Table:
    """Ours beside the peers of the variant. peers_folder: None leaves them out; against: part of the names to keep.

    limits: contenders that measure the machine itself.
    """
    workload, unavailable = workload_of(variant, options)
    peers = _peers(variant, peers_folder) if peers_folder else []
    contenders = [ours(variant, options, name="izwi-lab"), *(peer for peer in peers if against in peer.name), *limits]
    say(f"{variant.id}: {workload.title}")
    return Table(variant.id, workload, run_in_turn(workload, _marked(contenders, unavailable), plan=plan, say=say))


def across_backends(variant: ModelVariant, options: Options, plan: Plan, *, say: Say) -> Table:
    """Ours on every place there is; a place that is missing here is a row with the router's reason."""
    workload, unavailable = workload_of(variant, options)
    contenders = []
    for backend, device in PLACES:
        here = replace(options, backend=backend, device=device)
        reason = _rejection(variant, here)
        contenders.append(ours(variant, here, name=f"{backend} {device.partition(':')[0]}", unavailable=reason))
    say(f"{variant.id}: {workload.title}")
    cases = run_in_turn(workload, _marked(contenders, unavailable), plan=plan, say=say)
    return Table(variant.id, workload, cases, REFERENCE_PLACE)


def peer_table(peers_folder: Path) -> Mapping[str, Sequence[Any]]:
    """PEERS of `benchmarks/peers/__init__.py`; empty where there is no such folder."""
    module = _peer_module(peers_folder)
    table: Mapping[str, Sequence[Any]] = module.PEERS if module is not None else {}
    return table


def _peer_module(folder: Path) -> ModuleType | None:
    path = folder / "__init__.py"
    if not path.is_file():
        return None
    spec = importlib.util.spec_from_file_location("izwi_lab_bench_peers", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def workload_of(variant: ModelVariant, options: Options) -> tuple[Workload, str]:
    """The variant's standard workload, and why it cannot be run where it cannot."""
    dummy = options.load_format == "dummy"
    if variant.task is Task.CHAT:
        gemma = variant.family.value.startswith("gemma")  # the only starter family whose text begins with a token
        return workloads.chat(add_bos=gemma, synthetic=dummy), ""
    if variant.task is Task.TTS:
        return workloads.tts(voice="af_heart" if "af_heart" in variant.voices else None), ""
    if variant.task is Task.ASR:
        if options.recording is not None:
            return options.recording, ""
        return workloads.asr(Path(), seconds=0.0, reference=""), options.recording_missing
    raise WrongTaskError(
        f"{variant.id} does {variant.task}, for which there is no standard workload.",
        hint="Choose a chat, tts or asr variant.",
    )


def ours(variant: ModelVariant, options: Options, *, name: str, unavailable: str = "") -> ContenderSpec:
    """Our own contender for a variant; its files are fetched now, and where they cannot be had its row says so."""
    settings = {
        "backend": options.backend,
        "device": options.device,
        "dtype": options.dtype,
        "load_format": options.load_format,
    }
    return ContenderSpec(
        name,
        options.target,
        role="ours",
        options={"model": variant.id, **settings, **options.extra},
        settings={k: v for k, v in {**settings, **options.extra}.items() if v is not None},
        search_path=(str(_SOURCE),),
        unavailable=unavailable or _not_obtainable(variant, options),
    )


def _not_obtainable(variant: ModelVariant, options: Options) -> str:
    """Fetch now, so that no download is timed as a load; the reason where the files cannot be had."""
    if options.load_format == "dummy":
        return ""
    try:
        artifacts.fetch(variant)
    except IzwiError as error:
        return str(error)
    return ""


def _peers(variant: ModelVariant, folder: Path) -> list[ContenderSpec]:
    module = _peer_module(folder)
    if module is None:
        reason = f"no peers in {folder}: run from a checkout, or pass --peers FOLDER"
        return [ContenderSpec("peers", "", unavailable=reason)]
    rows = module.PEERS.get(variant.id, ())
    try:
        local = artifacts.fetch(variant) if rows else None
    except IzwiError as error:
        return [ContenderSpec(row.name, row.target, unavailable=str(error)) for row in rows]
    search = (str(folder.resolve().parents[1]),)
    found = []
    for row in rows:
        layout = str(local.layout) if local is not None else ""
        # A peer reads the starter pack's own files; the hub's layout of the same model has other ones.
        starter = variant.starter_layout or variant.layout
        reason = "" if layout == starter else f"it reads {starter} files, and the model on disk is {layout}"
        options = {"folder": str(local.folder) if local is not None else "", **row.options}
        found.append(ContenderSpec(row.name, row.target, "peer", options, row.options, search, reason))
    return found


def _rejection(variant: ModelVariant, options: Options) -> str:
    """Why the router will not run the variant there; empty when it will."""
    try:
        BackendRouter().select(variant, backend=options.backend, device=options.device, dtype=options.dtype)
    except BackendUnavailableError as error:
        return _of_device(options) or str(error)
    return ""


def _of_device(options: Options) -> str:
    """Why the machine lacks the device, where that is the cause: shorter than the router's whole account."""
    kind = (options.device or "").partition(":")[0]
    reasons = [gone.reason for gone in survey().missing if (gone.backend, gone.device) == (options.backend, kind)]
    return reasons[0] if reasons else ""


def _marked(contenders: Sequence[ContenderSpec], unavailable: str) -> list[ContenderSpec]:
    return [replace(spec, unavailable=spec.unavailable or unavailable) for spec in contenders]


def starters(peers_folder: Path = PEERS_FOLDER) -> tuple[str, ...]:
    """Ids of the variants that have peers and a working family, in the table's order."""
    from izwi_lab import catalog
    from izwi_lab.runtime.load import working_families

    families = working_families()
    ids = tuple(id for id in peer_table(peers_folder) if str(catalog.get(id).family) in families)
    if not ids:
        raise InvalidInputError(
            f"There is no peer table in {peers_folder}.", hint="Name the models, or run from a checkout."
        )
    return ids
