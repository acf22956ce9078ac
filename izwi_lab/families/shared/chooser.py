"""Where tokens are chosen: in the compiled kernel for logits in host memory, else on the device, with one wait."""

from __future__ import annotations

import dataclasses
import weakref

import numpy as np

from izwi_lab.backends.base import Backend, Native, Net
from izwi_lab.families.shared.nets.sampler.native import HostSampler, host_sampler
from izwi_lab.families.shared.nets.sampler.rules import Rules

_NET = "izwi_lab.families.shared.nets.sampler"
_ARRAYS = ("seen", "counts", "bias_ids", "bias", "allowed")
_nets: weakref.WeakKeyDictionary[Backend, Net] = weakref.WeakKeyDictionary()


class Chooser:
    """The sampler that serves a backend now. Arrays of the rules may be numpy or native."""

    def __init__(self, backend: Backend) -> None:
        self._backend = backend
        self._host: HostSampler | None = host_sampler() if backend.device == "cpu" else None

    def token(self, logits: Native, rules: Rules, share: int) -> tuple[int, float]:
        """The chosen id from native logits [V], and the largest logit under the rules; share: of 2^31."""
        if self._host is not None:
            return self._host.token(self._values(logits), rules, share)
        with self._backend.inference():
            token: tuple[int, float] = self._net().token(logits, self._native(rules), share)
        return token

    def weights(self, logits: Native, rules: Rules) -> tuple[Native, float]:
        """Whole-number weights [V] of what may be drawn, native, and the largest logit under the rules."""
        if self._host is not None:
            weights, top = self._host.weights(self._values(logits), rules)
            return self._backend.array(weights), top
        with self._backend.inference():
            found, best = self._net().weights(logits, self._native(rules))
            return found, float(best.item())

    def drawn(self, weights: Native, share: int) -> int:
        """An id drawn by weight."""
        with self._backend.inference():
            return int(self._net().drawn(weights, share).item())

    def judged(self, p: Native, q: Native, draft: int, chance: float, share: int) -> tuple[bool, int]:
        """Whether a draft drawn by weights q stays as one drawn by p, and else what takes its place; one wait."""
        with self._backend.inference():
            found: tuple[bool, int] = self._net().judged(p, q, draft, chance, share)
        return found

    def best(self, logits: Native, k: int) -> tuple[np.ndarray, np.ndarray, float]:
        """The k likeliest ids of native logits [V], their log-probabilities, best first; log(sum(exp(logits)))."""
        k = min(k, int(logits.shape[0]))
        if self._host is not None:
            return self._host.best(self._values(logits), k)
        with self._backend.inference():
            ids, logprobs, whole = self._net().best(logits, k)
            return self._backend.numpy(ids), self._backend.numpy(logprobs), float(whole.item())

    def logprobs(self, logits: Native, ids: np.ndarray) -> np.ndarray:
        """Log-probability float32 [T] of ids [T] under native logits [T, V]."""
        with self._backend.inference():
            return self._backend.numpy(self._net().logprobs(logits, self._backend.array(ids)))

    def _values(self, logits: Native) -> np.ndarray:
        return np.ascontiguousarray(self._backend.numpy(logits))

    def _native(self, rules: Rules) -> Rules:
        held = {name: getattr(rules, name) for name in _ARRAYS}
        return dataclasses.replace(
            rules, **{n: self._array(a) if isinstance(a, np.ndarray) else a for n, a in held.items()}
        )

    def _array(self, values: np.ndarray) -> Native:
        return self._backend.array(values, dtype="float32" if values.dtype == np.float32 else None)

    def _net(self) -> Net:
        net = _nets.get(self._backend)
        if net is None:
            net = _nets[self._backend] = self._backend.net(_NET, "Sampler", None, {})
        return net
