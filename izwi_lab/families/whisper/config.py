"""Whisper's sizes and decoding constants, from a transformers config.json or from a CTranslate2 folder."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

from izwi_lab.errors import CheckpointError

SAMPLE_RATE_HZ = 16_000
WINDOW_S = 30.0
HOP_SAMPLES = 160
FRAMES_PER_WINDOW = 3000  # mel frames in 30 s
SECONDS_PER_TIMESTAMP = 0.02  # one timestamp token, and one encoder state

_BOUNDS = {
    "vocab_size": (51_864, 60_000),
    "d_model": (8, 8_192),
    "encoder_layers": (1, 128),
    "decoder_layers": (1, 128),
    "encoder_attention_heads": (1, 128),
    "decoder_attention_heads": (1, 128),
    "encoder_ffn_dim": (8, 65_536),
    "decoder_ffn_dim": (8, 65_536),
    "num_mel_bins": (8, 256),
    "max_source_positions": (10, 1_500),
    "max_target_positions": (8, 4_096),
}


@dataclass(frozen=True, slots=True)
class WhisperConfig:
    """The net's sizes, under transformers' names. Tiny to large-v3-turbo differ in nothing else."""

    vocab_size: int
    d_model: int
    encoder_layers: int
    decoder_layers: int
    encoder_attention_heads: int
    decoder_attention_heads: int
    encoder_ffn_dim: int
    decoder_ffn_dim: int
    num_mel_bins: int = 80
    max_source_positions: int = 1_500
    max_target_positions: int = 448

    def __post_init__(self) -> None:
        for name, (low, high) in _BOUNDS.items():
            value = getattr(self, name)
            if not isinstance(value, int) or not low <= value <= high:
                raise CheckpointError(f"Whisper config: {name} is {value!r}, expected {low} to {high}.")
        for heads in (self.encoder_attention_heads, self.decoder_attention_heads):
            if self.d_model % heads:
                raise CheckpointError(f"Whisper config: d_model {self.d_model} does not divide into {heads} heads.")

    @property
    def multilingual(self) -> bool:
        """False for the `.en` models, whose vocabulary is one id shorter (51,864)."""
        return self.vocab_size > 51_864

    @classmethod
    def from_hf(cls, config: Mapping[str, Any]) -> WhisperConfig:
        """From a transformers config.json. Raises CheckpointError naming what is missing."""
        missing = [f.name for f in fields(cls) if f.name not in config and f.name not in _DEFAULTED]
        if missing:
            lacking = ", ".join(missing)
            raise CheckpointError(f"Whisper config.json lacks {lacking}.", hint="Expected model_type whisper.")
        return cls(**{n: config[n] for n in _BOUNDS if n in config})


_DEFAULTED = {"num_mel_bins", "max_source_positions", "max_target_positions"}


@dataclass(frozen=True, slots=True)
class GenerationConfig:
    """Ids the decoder never emits, and the cross-attention heads that follow time.

    suppress: at every step (non-speech symbols and control tokens); begin_suppress: at the first step (blank, end).
    alignment_heads: (layer, head) pairs; empty means the heads of the decoder's upper half, as the reference does.
    """

    suppress: tuple[int, ...] = ()
    begin_suppress: tuple[int, ...] = ()
    alignment_heads: tuple[tuple[int, int], ...] = ()

    def heads(self, config: WhisperConfig) -> tuple[tuple[int, int], ...]:
        """The alignment heads, checked against the net."""
        half = range(config.decoder_layers // 2, config.decoder_layers)
        chosen = self.alignment_heads or tuple((n, h) for n in half for h in range(config.decoder_attention_heads))
        for layer, head in chosen:
            if not (0 <= layer < config.decoder_layers and 0 <= head < config.decoder_attention_heads):
                raise CheckpointError(f"alignment head ({layer}, {head}) is not in this decoder.")
        return chosen

    @classmethod
    def of(
        cls,
        config: WhisperConfig,
        suppress: Sequence[int] | None,
        begin: Sequence[int] | None,
        heads: Sequence[Sequence[int]] | None,
    ) -> GenerationConfig:
        """Checked from the lists of a generation_config.json or a CTranslate2 config.json."""
        for name, ids in (("suppress_tokens", suppress), ("begin_suppress_tokens", begin)):
            wrong = [i for i in ids or () if not isinstance(i, int) or not 0 <= i < config.vocab_size]
            if wrong:
                raise CheckpointError(f"{name} holds {wrong[:5]}, expected ids below {config.vocab_size}.")
        pairs = tuple((int(layer), int(head)) for layer, head in heads or ())
        return cls(tuple(suppress or ()), tuple(begin or ()), pairs)
