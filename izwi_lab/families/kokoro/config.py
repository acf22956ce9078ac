"""KokoroConfig: the sizes of a Kokoro net, read from the official config.json."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from math import prod
from types import MappingProxyType
from typing import Any

from izwi_lab.errors import CheckpointError


@dataclass(frozen=True, slots=True)
class AlbertConfig:
    """The phoneme encoder (PL-BERT): an ALBERT whose one layer is applied `layers` times."""

    hidden: int = 768
    heads: int = 12
    intermediate: int = 2048
    layers: int = 12
    embedding: int = 128
    max_positions: int = 512
    norm_eps: float = 1e-12


@dataclass(frozen=True, slots=True)
class IstftNetConfig:
    """The vocoder: upsampling stages, residual blocks, and the short inverse Fourier transform at the end."""

    upsample_rates: tuple[int, ...] = (10, 6)
    upsample_kernels: tuple[int, ...] = (20, 12)
    upsample_channels: int = 512
    resblock_kernels: tuple[int, ...] = (3, 7, 11)
    resblock_dilations: tuple[tuple[int, ...], ...] = ((1, 3, 5), (1, 3, 5), (1, 3, 5))
    n_fft: int = 20
    hop: int = 5

    @property
    def samples_per_f0(self) -> int:
        """Samples made per value of the pitch curve."""
        return prod(self.upsample_rates) * self.hop


@dataclass(frozen=True, slots=True)
class KokoroConfig:
    """Every size of the net. `decoder_width` and `residual_width` are constants of the official decoder."""

    n_tokens: int = 178
    hidden: int = 512
    style: int = 128
    layers: int = 3
    max_duration: int = 50
    text_kernel: int = 5
    albert: AlbertConfig = field(default_factory=AlbertConfig)
    istft: IstftNetConfig = field(default_factory=IstftNetConfig)
    vocab: Mapping[str, int] = field(default_factory=lambda: MappingProxyType({}))
    decoder_width: int = 1024
    residual_width: int = 64
    harmonics: int = 9
    rate_hz: int = 24_000

    @property
    def max_phonemes(self) -> int:
        """Most phonemes of one piece: the encoder's positions less the two boundary tokens."""
        return self.albert.max_positions - 2

    @property
    def samples_per_frame(self) -> int:
        """Samples per duration unit; the pitch curve has two values per unit."""
        return 2 * self.istft.samples_per_f0

    @staticmethod
    def of(values: Mapping[str, Any]) -> KokoroConfig:
        """Read the official config.json (keys of hexgrad/Kokoro-82M). Raises CheckpointError on a missing key."""
        try:
            bert, net = values["plbert"], values["istftnet"]
            return KokoroConfig(
                n_tokens=int(values["n_token"]),
                hidden=int(values["hidden_dim"]),
                style=int(values["style_dim"]),
                layers=int(values["n_layer"]),
                max_duration=int(values["max_dur"]),
                text_kernel=int(values["text_encoder_kernel_size"]),
                albert=AlbertConfig(
                    hidden=int(bert["hidden_size"]),
                    heads=int(bert["num_attention_heads"]),
                    intermediate=int(bert["intermediate_size"]),
                    layers=int(bert["num_hidden_layers"]),
                    embedding=int(bert.get("embedding_size", 128)),
                    max_positions=int(bert["max_position_embeddings"]),
                ),
                istft=IstftNetConfig(
                    upsample_rates=tuple(net["upsample_rates"]),
                    upsample_kernels=tuple(net["upsample_kernel_sizes"]),
                    upsample_channels=int(net["upsample_initial_channel"]),
                    resblock_kernels=tuple(net["resblock_kernel_sizes"]),
                    resblock_dilations=tuple(tuple(d) for d in net["resblock_dilation_sizes"]),
                    n_fft=int(net["gen_istft_n_fft"]),
                    hop=int(net["gen_istft_hop_size"]),
                ),
                vocab=MappingProxyType({str(k): int(v) for k, v in values.get("vocab", {}).items()}),
                decoder_width=int(values.get("decoder_width", 1024)),
                residual_width=int(values.get("residual_width", 64)),
            )
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise CheckpointError(
                f"Kokoro's config.json is not understood: {error!r}.", hint="Use the config.json of the checkpoint."
            ) from error
