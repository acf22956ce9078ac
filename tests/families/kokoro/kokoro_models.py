"""Tiny Kokoro models with the reference's seeded weights, for the tests beside this file."""

from __future__ import annotations

import kokoro_reference as reference

from izwi_lab import catalog
from izwi_lab.artifacts.tensors import Tensor
from izwi_lab.backends import open_backend
from izwi_lab.backends.base import BackendPlan
from izwi_lab.families.kokoro import weights
from izwi_lab.families.kokoro.config import KokoroConfig
from izwi_lab.families.kokoro.model import Kokoro
from izwi_lab.families.kokoro.voices import Voices

PACKAGE = "izwi_lab.families.kokoro"


def plan(backend: str, dtype: str = "float32") -> BackendPlan:
    return BackendPlan(backend, "cpu", dtype, "test")


def tiny_tensors(backend) -> dict[str, Tensor]:
    """The reference's tiny weights under the names of our net."""
    config = KokoroConfig.of(reference.TINY)
    shapes = backend.parameters(backend.net(PACKAGE, "KokoroNet", config, None))
    return {name: Tensor(reference.weight(name, shape), "float32") for name, shape in shapes.items()}


def tiny_model(name: str, dtype: str = "float32") -> Kokoro:
    backend = open_backend(plan(name, dtype))
    config = KokoroConfig.of(reference.TINY)
    tensors = tiny_tensors(backend)
    net = backend.net(PACKAGE, "KokoroNet", config, tensors, keep_float32=weights.KEEP_FLOAT32)
    voices = Voices({}, dummy=("af_heart", "am_michael", "bf_emma", "jf_alpha"))
    return Kokoro(catalog.get("Kokoro-82M"), plan(name, dtype), backend, net, config, voices)
