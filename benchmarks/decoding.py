"""Ours for benchmarks.decode: counts the bytes that a token costs, and can quantise and guess ahead."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

from izwi_lab.bench.contender import Measurement
from izwi_lab.bench.ours import Ours
from izwi_lab.bench.worker import resident_bytes


class Decoding(Ours):
    """The chat runs of `Ours`.

    bits: quantise a dense model to 4 or 8 bits in groups of group_size after loading. lookup: speculative decoding by
    prompt lookup.
    """

    def __init__(
        self,
        *,
        model: str,
        backend: str | None = None,
        device: str | None = None,
        dtype: str | None = None,
        load_format: str = "auto",
        bits: int | None = None,
        group_size: int = 64,
        lookup: bool = False,
    ) -> None:
        super().__init__(model=model, backend=backend, device=device, dtype=dtype, load_format=load_format)
        self._bits, self._group_size, self._lookup = bits, group_size, lookup
        self._base_bytes = self._kv_bytes = self._passes = 0

    def load(self) -> Mapping[str, Any]:
        """Open the framework, note what it holds, load, quantise."""
        from izwi_lab.runtime.load import backend_for
        from izwi_lab.runtime.model_router import ModelRouter

        route = ModelRouter().route(self._name, backend=self._backend, device=self._device, dtype=self._dtype)
        backend_for(route.plan)
        self._base_bytes = resident_bytes()
        facts = dict(super().load())
        if self._bits is not None:
            import izwi_lab
            from izwi_lab.backends import host

            self._model = izwi_lab.quantize(self._model, bits=self._bits, group_size=self._group_size)
            host.return_freed_memory()  # the dense weights are gone
            facts |= {"quantisation": f"{self._bits} bits, groups of {self._group_size}"}
        return {**facts, "weights_bytes": self._model.nbytes}

    def base_bytes(self) -> int:
        """Resident before the weights."""
        return self._base_bytes

    def needed_bytes(self) -> int:
        """Weights, and the caches of the last run."""
        return int(self._model.nbytes) + self._kv_bytes

    def ready(self) -> Mapping[str, Any]:
        """See Ours; the accelerator's peak begins here too."""
        facts = super().ready()
        if self._model.plan.device.startswith("cuda"):
            import torch

            torch.cuda.reset_peak_memory_stats(self._model.plan.device)
        elif self._model.plan.backend == "mlx":
            import mlx.core as mx

            mx.reset_peak_memory()
        return facts

    def device_bytes(self) -> int:
        """The framework's highest use of its device since loading, where it can tell."""
        if self._model.plan.device.startswith("cuda"):
            import torch

            return int(torch.cuda.max_memory_allocated(self._model.plan.device))
        if self._model.plan.backend == "mlx":
            import mlx.core as mx

            return int(mx.get_peak_memory())
        return super().device_bytes()

    def _chat(self, data: Mapping[str, Any]) -> Measurement:
        found = super()._chat(data)
        session, n = self._last, found.tokens
        self._kv_bytes = session.nbytes
        if self._lookup:  # several tokens share a reading of the weights, so tokens times bytes would be no figure
            return found
        weights = bytes_per_step(self._model)
        caches = sum(cache_bytes(self._model, session, found.prompt_tokens + 1 + i) for i in range(n))
        return replace(found, read_bytes=n * weights + caches)

    def _session(self, max_tokens: int) -> Any:
        self._last = super()._session(max_tokens)
        return self._last

    def _tokens(self, session: Any, step: Any) -> Iterator[int]:
        if not self._lookup:
            yield from super()._tokens(session, step)
            return
        from izwi_lab.families.shared.sampling import GREEDY
        from izwi_lab.families.shared.speculative import PromptLookup, drawn

        for token, _ in drawn(self._model, session, step, GREEDY, PromptLookup()):
            yield token


def bytes_per_step(model: Any) -> int:
    """Weights that one token must touch: all but an embedding table that is not the head too, and its one row."""
    if model.config.tied:
        return int(model.nbytes)
    table = model.net.model.embed_tokens
    held = table.parameters()
    arrays = held.values() if isinstance(held, dict) else [*held, *table.buffers()]
    return int(model.nbytes) - sum(int(a.nbytes) for a in arrays)


def cache_bytes(model: Any, session: Any, seen: int) -> int:
    """Bytes of the cached keys and values that attention reads when `seen` positions are there, own one included."""
    total = 0
    for layer, keys in enumerate(session.state["k"]):
        if keys is None:  # a convolution: its few inputs are nothing beside the weights
            continue
        window = model.config.window_of(layer)
        positions = min(seen, window) if window else seen
        scales = 4 if "k_scale" in session.state else 0
        heads, dim = int(keys.shape[1]), int(keys.shape[3])
        total += 2 * positions * heads * (dim * int(keys.itemsize) + scales)
    return total
