"""Sizes of Qwen3-TTS-Tokenizer-12Hz, read from the config.json of its folder."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Self

from izwi_lab.errors import CheckpointError
from izwi_lab.families.shared.config_fields import Fields, json_fields
from izwi_lab.families.shared.nets.seanet.config import SeanetConfig
from izwi_lab.families.shared.nets.windowed.config import WindowedConfig

MODEL_TYPE = "qwen3_tts_tokenizer_12hz"
KERNEL, DILATIONS = 7, (1, 3, 9)  # of the vocoder's convolutions, and of the units of a stage
_MOST_STAGES, _MOST_RATE, _MOST_WINDOW, _MOST_CODEBOOKS = 8, 64, 1 << 16, 64


@dataclass(frozen=True, slots=True)
class EncoderConfig:
    """Mimi's encoder. dim: of its codebooks; codebooks: how many the checkpoint holds, of which the first are used."""

    seanet: SeanetConfig = field(
        default_factory=lambda: SeanetConfig(WindowedConfig(512, 8, heads=8, head_dim=64, inner=2048, window=250))
    )
    codebook_size: int = 2048
    dim: int = 256
    codebooks: int = 32


@dataclass(frozen=True, slots=True)
class DecoderConfig:
    """The decoder. code_width: of the summed codes (a codebook has half of it); latent: of what the vocoder reads.

    width: channels after the vocoder's first convolution, halved at each of `rates`; ratios: what comes before it.
    """

    transformer: WindowedConfig = field(
        default_factory=lambda: WindowedConfig(
            512, 8, heads=16, head_dim=64, inner=1024, window=72, gated=True, outside=1024, one_by_one=True
        )
    )
    codebook_size: int = 2048
    code_width: int = 512
    latent: int = 1024
    width: int = 1536
    rates: tuple[int, ...] = (8, 5, 4, 3)
    ratios: tuple[int, ...] = (2, 2)

    @property
    def frame_samples(self) -> int:
        """Samples that one frame becomes."""
        return math.prod(self.rates) * math.prod(self.ratios)

    @property
    def past_frames(self) -> int:
        """How many frames back the vocoder sees: the past of each of its convolutions, in frames, added up."""
        rows, past = 1, 0.0  # rows that a frame has become
        for ratio in self.ratios:
            rows *= ratio
            past += (KERNEL - 1) / rows
        past += (KERNEL - 1) / rows
        for rate in self.rates:
            past += 1 / rows  # a transposed convolution, two steps long
            rows *= rate
            past += (KERNEL - 1) * sum(DILATIONS) / rows
        return math.ceil(past + (KERNEL - 1) / rows)


@dataclass(frozen=True, slots=True)
class CodecConfig:
    """The whole codec; without arguments the official sizes."""

    encoder: EncoderConfig = field(default_factory=EncoderConfig)
    decoder: DecoderConfig = field(default_factory=DecoderConfig)
    codebooks: int = 16
    rate_hz: int = 24_000

    @property
    def frame_samples(self) -> int:
        """Samples of one frame."""
        return self.decoder.frame_samples

    @classmethod
    def from_hf(cls, config: Mapping[str, Any]) -> Self:
        """From config.json. Raises CheckpointError, naming the field, for what is missing, absurd or not this codec."""
        fields = json_fields(config, MODEL_TYPE)
        codebooks = fields.size("encoder_valid_num_quantizers", 16, most=_MOST_CODEBOOKS)
        rate = fields.size("output_sample_rate", 24_000)
        fields.expect("input_sample_rate", None, rate)
        made = cls(
            _encoder(_part(fields, "encoder_config")), _decoder(_part(fields, "decoder_config")), codebooks, rate
        )
        _part(fields, "decoder_config").expect("num_quantizers", codebooks)
        samples = made.frame_samples
        if made.encoder.seanet.frame_samples != samples or codebooks < 2 or codebooks > made.encoder.codebooks:
            raise CheckpointError(
                f"config.json: {made.encoder.seanet.frame_samples} samples become a frame of {codebooks} of "
                f"{made.encoder.codebooks} codes, and a frame becomes {samples} samples.",
                hint="Expected one frame length both ways, and at least 2 codebooks. Fetch the model again.",
            )
        for name in ("decode_upsample_rate", "encode_downsample_rate"):
            fields.expect(name, None, samples)
        _part(fields, "encoder_config").expect("codebook_size", made.decoder.codebook_size)
        return made


def _part(fields: Fields, name: str) -> Fields:
    part = fields.find(name)
    if not isinstance(part, Mapping):
        raise CheckpointError(f"config.json says {str(part)[:60]!r} for {name!r}.", hint="Expected a table of sizes.")
    return Fields(part, source=f"config.json, {name}")


def _windowed(fields: Fields, norm: str, *, gated: bool, outside: int = 0) -> WindowedConfig:
    heads = fields.size("num_attention_heads", most=1024)
    width = fields.size("hidden_size")
    fields.expect("num_key_value_heads", None, heads)
    fields.expect("attention_bias", None, False)
    fields.expect("rope_scaling", None)
    head_dim = fields.size("head_dim", max(1, width // heads), most=1024)
    theta, eps = fields.number("rope_theta", 10_000.0), fields.number(norm, 1e-5)
    if head_dim % 2 or theta < 1 or not 0 < eps < 1:
        raise CheckpointError(
            f"config.json says head_dim {head_dim}, rope_theta {theta:g}, {norm} {eps:g}.",
            hint="Expected an even head_dim, rope_theta of at least 1 and a norm epsilon between 0 and 1.",
        )
    return WindowedConfig(
        width=width,
        layers=fields.layers("num_hidden_layers"),
        heads=heads,
        head_dim=head_dim,
        inner=fields.size("intermediate_size"),
        window=fields.size("sliding_window", most=_MOST_WINDOW),
        theta=theta,
        eps=eps,
        gated=gated,
        outside=outside,
        one_by_one=gated,
    )


def _encoder(fields: Fields) -> EncoderConfig:
    one_form: dict[str, Any] = {
        "audio_channels": 1,
        "num_residual_layers": 1,
        "use_causal_conv": True,
        "use_conv_shortcut": False,
    }
    one_form |= {"pad_mode": "constant", "hidden_act": "gelu", "num_semantic_quantizers": 1, "trim_right_ratio": 1.0}
    for name, value in one_form.items():
        fields.expect(name, None, value)
    return EncoderConfig(
        seanet=SeanetConfig(
            transformer=_windowed(fields, "norm_eps", gated=False),
            filters=fields.size("num_filters", 64, most=1 << 12),
            ratios=tuple(reversed(_rates(fields, "upsampling_ratios", (8, 6, 5, 4)))),
            kernel=fields.size("kernel_size", 7, most=_MOST_RATE),
            last_kernel=fields.size("last_kernel_size", 3, most=_MOST_RATE),
            residual_kernel=fields.size("residual_kernel_size", 3, most=_MOST_RATE),
            compress=fields.size("compress", 2, most=_MOST_RATE),
        ),
        codebook_size=fields.size("codebook_size", 2048, most=1 << 20),
        dim=fields.size("vector_quantization_hidden_dimension", 256),
        codebooks=fields.size("num_quantizers", 32, most=_MOST_CODEBOOKS),
    )


def _decoder(fields: Fields) -> DecoderConfig:
    fields.expect("hidden_act", None, "silu")
    fields.expect("num_semantic_quantizers", None, 1)
    latent, width = fields.size("latent_dim", 1024), fields.size("decoder_dim", 1536)
    code_width, rates = fields.size("codebook_dim", 512), _rates(fields, "upsample_rates", (8, 5, 4, 3))
    if width % (1 << len(rates)) or code_width % 2:
        raise CheckpointError(
            f"config.json says decoder_dim {width} with {len(rates)} upsample_rates, and codebook_dim {code_width}.",
            hint="Expected a decoder_dim that can be halved at each rate, and an even codebook_dim.",
        )
    return DecoderConfig(
        transformer=_windowed(fields, "rms_norm_eps", gated=True, outside=latent),
        codebook_size=fields.size("codebook_size", 2048, most=1 << 20),
        code_width=code_width,
        latent=latent,
        width=width,
        rates=rates,
        ratios=_rates(fields, "upsampling_ratios", (2, 2)),
    )


def _rates(fields: Fields, name: str, default: tuple[int, ...]) -> tuple[int, ...]:
    found = fields.listed(name)
    if found is None:
        return default
    if not 1 <= len(found) <= _MOST_STAGES or not all(type(r) is int and 1 <= r <= _MOST_RATE for r in found):
        raise CheckpointError(
            f"config.json says {str(list(found))[:60]} for {name!r}.",
            hint=f"Expected 1 to {_MOST_STAGES} whole numbers from 1 to {_MOST_RATE}.",
        )
    return tuple(found)
