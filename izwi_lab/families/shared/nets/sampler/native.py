"""The compiled sampler (`backends/native/sampler.cpp`) for logits in host memory, through ctypes."""

from __future__ import annotations

import ctypes
import threading
import time

import numpy as np

from izwi_lab.backends import native
from izwi_lab.families.shared.nets.sampler.rules import Rules

_RETRY_S = 0.5
_library: ctypes.CDLL | None = None
_asked_s = float("-inf")


class _Rules(ctypes.Structure):
    """`struct Rules` of sampler.cpp."""

    _fields_ = (
        *((n, ctypes.c_void_p) for n in ("seen", "counts", "bias_ids", "bias", "allowed")),
        ("biases", ctypes.c_int32),
        *((n, ctypes.c_float) for n in ("repetition", "frequency", "presence", "temperature")),
        ("top_k", ctypes.c_int32),
        ("unused", ctypes.c_int32),
        ("top_p", ctypes.c_int64),
        ("min_weight", ctypes.c_int64),
    )


class _Scratch(threading.local):
    """Room for the logits under the rules, one per thread."""

    values = np.empty(0, np.float32)
    address = 0


_scratch = _Scratch()


class HostSampler:
    """The same verbs as `Sampler` of the nets, on float32 numpy logits [V]."""

    def __init__(self, library: ctypes.CDLL) -> None:
        self._library = library

    def token(self, logits: np.ndarray, rules: Rules, share: int) -> tuple[int, float]:
        """The chosen id and the largest logit under the rules. share: the random number, of 2^31."""
        scratch, top = _room(len(logits)), ctypes.c_float()
        token = self._library.izwi_sample(
            logits.ctypes.data, len(logits), ctypes.byref(_packed(rules)), share, scratch, ctypes.byref(top)
        )
        return int(token), top.value

    def weights(self, logits: np.ndarray, rules: Rules) -> tuple[np.ndarray, float]:
        """Whole-number weights int64 [V] of what may be drawn, and the largest logit under the rules."""
        scratch, top = _room(len(logits)), ctypes.c_float()
        out = np.zeros(len(logits), np.int64)
        self._library.izwi_weights(
            logits.ctypes.data, len(logits), ctypes.byref(_packed(rules)), out.ctypes.data, scratch, ctypes.byref(top)
        )
        return out, top.value

    def best(self, logits: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray, float]:
        """The k likeliest ids and their log-probabilities, best first, and log(sum(exp(logits)))."""
        ids, logprobs = np.empty(k, np.int64), np.empty(k, np.float64)
        whole = self._library.izwi_best(logits.ctypes.data, len(logits), k, ids.ctypes.data, logprobs.ctypes.data)
        return ids, logprobs, float(whole)


def host_sampler() -> HostSampler | None:
    """The compiled sampler, or None while it is being built or cannot be; asks again twice a second."""
    global _library, _asked_s
    if _library is None:
        if time.monotonic() - _asked_s < _RETRY_S:
            return None
        _asked_s = time.monotonic()
        found = native.library("sampler")
        if found is None:
            return None
        _declare(found)
        _library = found
    return HostSampler(_library)


def _declare(library: ctypes.CDLL) -> None:
    library.izwi_sizeof_rules.restype = ctypes.c_long
    if library.izwi_sizeof_rules() != ctypes.sizeof(_Rules):
        raise RuntimeError("sampler.cpp and its Python declarations disagree on struct Rules")
    pointer, number = ctypes.c_void_p, ctypes.c_int64
    rules, top = ctypes.POINTER(_Rules), ctypes.POINTER(ctypes.c_float)
    library.izwi_sample.argtypes = (pointer, number, rules, number, pointer, top)
    library.izwi_sample.restype = number
    library.izwi_weights.argtypes = (pointer, number, rules, pointer, pointer, top)
    library.izwi_weights.restype = None
    library.izwi_best.argtypes = (pointer, number, number, pointer, pointer)
    library.izwi_best.restype = ctypes.c_double


def _room(size: int) -> int:
    if len(_scratch.values) < size:
        _scratch.values = np.empty(size, np.float32)
        _scratch.address = int(_scratch.values.ctypes.data)
    return _scratch.address


def _packed(r: Rules) -> _Rules:
    """The arrays must outlive the call; `r` holds them."""
    seen, counts, ids, bias, allowed = (
        None if a is None else a.ctypes.data for a in (r.seen, r.counts, r.bias_ids, r.bias, r.allowed)
    )
    biases = 0 if r.bias is None else len(r.bias)
    penalties = (r.repetition, r.frequency, r.presence, r.temperature)
    return _Rules(seen, counts, ids, bias, allowed, biases, *penalties, r.top_k, 0, r.top_p, r.min_weight)
