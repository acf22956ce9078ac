"""Will it fit: bytes of weights and of the key/value cache against the memory of a device."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from izwi_lab.catalog.configs import config, has_config
from izwi_lab.catalog.variant import Layout, ModelVariant
from izwi_lab.errors import InvalidInputError

DTYPE_BYTES = {"float32": 4, "float16": 2, "bfloat16": 2}
_DEFAULT_CONTEXT = 4096  # tokens; the smaller of this and the model's own limit is used when none is given
_AFFINE_4BIT = 4 + 2 * 32 / 32  # bits per weight of groups of 32 with float32 scale and bias: our form of Q4_0/Q4_1
_QUANTISED_LAYOUTS = {Layout.GGUF}  # starter layouts whose matrices stay quantised in memory


class HasMemory(Protocol):
    """A device, as far as `fit` needs to know it. 0 bytes means the memory could not be read."""

    @property
    def name(self) -> str:
        """Its name, for the explanation."""

    @property
    def memory_bytes(self) -> int:
        """All of its memory."""

    @property
    def available_bytes(self) -> int:
        """What of it is free now."""


@dataclass(frozen=True, slots=True)
class Fit:
    """An estimate of the memory a model needs on a device. Activations (tens to hundreds of MB) are not counted.

    fits: total_bytes is no more than available_bytes; True also when the device's memory could not be read
    (available_bytes 0), which the explanation says.
    """

    weights_bytes: int
    kv_bytes: int
    total_bytes: int
    available_bytes: int
    fits: bool
    explanation: str


def fit(
    device: HasMemory,
    variant: ModelVariant,
    *,
    context: int | None = None,
    dtype: str = "bfloat16",
    layout: Layout | None = None,
    sequences: int = 1,
) -> Fit:
    """Estimate whether `variant` fits on `device`.

    Args:
        device: anything with name, memory_bytes and available_bytes, such as a `backends.detect.Device`.
        variant: the model.
        context: tokens kept per sequence; None takes 4096, or the model's own limit where that is less.
        dtype: compute dtype, in which dense weights and the cache are held: float32, float16 or bfloat16.
        layout: which files are meant where a model comes in several; None takes the hub's, usually the larger.
        sequences: how many sequences hold a cache at once.

    Raises:
        InvalidInputError: a context the model cannot hold, an unknown dtype, or no sequence at all.
    """
    if dtype not in DTYPE_BYTES:
        raise InvalidInputError(f"{dtype!r} is no compute dtype.", hint=f"Choose one of {', '.join(DTYPE_BYTES)}.")
    if sequences < 1:
        raise InvalidInputError(f"At least one sequence was expected, {sequences} came.")
    weights, how = _weights_bytes(variant, dtype, layout)
    kv, kept = _kv(variant, context, DTYPE_BYTES[dtype])
    kv *= sequences
    total, available = weights + kv, device.available_bytes
    fits = total <= available or available == 0
    verdict = "fits" if fits else f"is {_gb(total - available)} too large"
    if available == 0:
        verdict = "may fit: the memory of this device could not be read"
    batch = f" for {sequences} sequences" if sequences > 1 else ""
    return Fit(
        weights_bytes=weights,
        kv_bytes=kv,
        total_bytes=total,
        available_bytes=available,
        fits=fits,
        explanation=(
            f"{variant.id} needs {_gb(total)} on {device.name}: {_gb(weights)} of weights ({how}) and {_gb(kv)} of "
            f"cache ({kept}{batch}), activations not counted; {_gb(available)} are free: {verdict}."
        ),
    )


def _weights_bytes(variant: ModelVariant, dtype: str, layout: Layout | None) -> tuple[int, str]:
    """Bytes of the weights as held in memory, and in words how they were reckoned."""
    layout = layout or variant.layout
    if variant.starter and layout == variant.starter_layout and layout in _QUANTISED_LAYOUTS:
        if variant.parameters:
            return int(variant.parameters * _AFFINE_4BIT / 8), f"{variant.parameters:,} parameters, kept at 4 bits"
        return variant.starter.installed_bytes, "size of the quantised files"
    if variant.quantisation.endswith("bit"):
        return variant.size_bytes, "size of the quantised files"
    if variant.parameters:
        return variant.parameters * DTYPE_BYTES[dtype], f"{variant.parameters:,} parameters in {dtype}"
    scale = DTYPE_BYTES[dtype] / DTYPE_BYTES[variant.dtype]
    return int(variant.size_bytes * scale), f"from the size of the files, in {dtype}"


def _kv(variant: ModelVariant, context: int | None, item_bytes: int) -> tuple[int, str]:
    """Bytes of one sequence's cache, and in words what it holds."""
    if context is not None and context < 1:
        raise InvalidInputError(f"A context of at least one token was expected, {context} came.")
    if not has_config(variant):
        return 0, "not known: the catalog keeps no config for this model"
    values = config(variant)
    caches = attention_caches(values)
    if not caches:
        return 0, "none: it keeps no past"
    limit = _limit(values)
    if limit and context and context > limit:
        raise InvalidInputError(
            f"{variant.id} holds {limit} tokens, a context of {context} was asked for.",
            hint=f"Ask for {limit} or less.",
        )
    tokens = context or min(limit or _DEFAULT_CONTEXT, _DEFAULT_CONTEXT)
    return sum(c.bytes(tokens, item_bytes) for c in caches), f"{tokens} tokens"


@dataclass(frozen=True, slots=True)
class AttentionCache:
    """Layers of one shape: 2 x layers x heads x head_dim values for each of min(context, window) positions.

    fixed: a number of positions that does not depend on the context (Whisper's audio frames, a predictor's codes).
    """

    layers: int
    heads: int
    head_dim: int
    window: int | None = None
    fixed: int | None = None

    def bytes(self, context: int, item_bytes: int) -> int:
        """Bytes of keys and values for `context` positions."""
        positions = self.fixed if self.fixed is not None else min(context, self.window or context)
        return 2 * self.layers * self.heads * self.head_dim * positions * item_bytes


def attention_caches(values: Mapping[str, Any]) -> tuple[AttentionCache, ...]:
    """The caches a model with this config.json keeps, by its `model_type`; none for models without a past."""
    kind = values.get("model_type", "")
    if kind == "whisper":
        heads, layers = values["decoder_attention_heads"], values["decoder_layers"]
        width = values["d_model"] // heads
        return (
            AttentionCache(layers, heads, width, fixed=values["max_target_positions"]),
            AttentionCache(layers, heads, width, fixed=values["max_source_positions"]),
        )
    if kind == "qwen3_tts":
        talker = values["talker_config"]
        codes = talker["num_code_groups"] + 1
        return (*_decoder(talker), *_decoder(talker["code_predictor_config"], fixed=codes))
    if kind == "voxtral_realtime":
        return (*_decoder(values["text_config"]), *_decoder(values["audio_config"]))
    return _decoder(_text_config(values)) if "num_hidden_layers" in _text_config(values) else ()


def _decoder(values: Mapping[str, Any], *, fixed: int | None = None) -> tuple[AttentionCache, ...]:
    heads = values["num_attention_heads"]
    kv_heads = values.get("num_key_value_heads", heads)
    head_dim = values.get("head_dim") or values["hidden_size"] // heads
    layers, window = values["num_hidden_layers"], values.get("sliding_window")
    if "full_attn_idxs" in values:  # LFM2: the other layers keep a few inputs of a convolution
        return (AttentionCache(len(values["full_attn_idxs"]), kv_heads, head_dim),)
    if every := values.get("sliding_window_pattern"):  # Gemma 3: every sixth layer sees everything
        full = layers // every
        return (
            AttentionCache(full, kv_heads, head_dim),
            AttentionCache(layers - full, kv_heads, head_dim, window=window),
        )
    return (AttentionCache(layers, kv_heads, head_dim, window=window, fixed=fixed),)


def _text_config(values: Mapping[str, Any]) -> Mapping[str, Any]:
    inner: Mapping[str, Any] = values.get("thinker_config", values)
    text: Mapping[str, Any] = inner.get("talker_config") or inner.get("text_config") or inner
    return text


def _limit(values: Mapping[str, Any]) -> int | None:
    limit = values.get("max_target_positions") or _text_config(values).get("max_position_embeddings")
    return int(limit) if limit else None


def _gb(n: int) -> str:
    return f"{n / 1e9:.2f} GB" if abs(n) >= 1e8 else f"{n / 1e6:.1f} MB"
