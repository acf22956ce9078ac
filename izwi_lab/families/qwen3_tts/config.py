"""Qwen3-TTS: what config.json says of talker, code predictor and speaker encoder (qwen-tts 0.1.1, configuration files).

The talker's rope has three rows of positions (MRoPE); the reference gives all three the same numbers, which is plain
rope, so `mrope_section` is not read.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self

from izwi_lab.errors import CheckpointError
from izwi_lab.families.shared.config_fields import Fields, json_fields, json_rope
from izwi_lab.families.shared.nets.decoder.config import FULL, MOST, DecoderConfig

KINDS = ("base", "custom_voice", "voice_design")
SIZES = ("0b6", "1b7")
MOST_CODEBOOKS = 64
_MOST_NAMED = 4096  # languages or voices
_THETA = 1_000_000.0
_FETCH = "Fetch the model again, or check that the files are of this model."
_SPEAKER_HZ = 24000  # of the speaker encoder's features: its windows and hops are counted in samples of that rate


@dataclass(frozen=True, slots=True)
class Ids:
    """Control ids: im_start to tts_eos of the text vocabulary, the others of the talker's own."""

    im_start: int
    im_end: int
    assistant: int
    tts_pad: int
    tts_bos: int
    tts_eos: int
    codec_pad: int
    codec_bos: int
    codec_eos: int
    think: int
    nothink: int
    think_bos: int
    think_eos: int


@dataclass(frozen=True, slots=True)
class SpeakerConfig:
    """The speaker encoder, an ECAPA-TDNN: [F, mel_bins] -> [width]. Lists are by block; the last is the aggregation."""

    width: int
    mel_bins: int = 128
    channels: tuple[int, ...] = (512, 512, 512, 512, 1536)
    kernels: tuple[int, ...] = (5, 3, 3, 3, 1)
    dilations: tuple[int, ...] = (1, 2, 3, 4, 1)
    attention_channels: int = 128
    scale: int = 8
    se_channels: int = 128

    @classmethod
    def from_hf(cls, values: Mapping[str, Any], *, width: int) -> Self:
        """From `speaker_encoder_config`; width: that of the talker, which reads the vector.

        Raises:
            CheckpointError: sizes that no such encoder has.
        """
        fields = Fields(values, source="speaker_encoder_config of config.json")
        fields.expect("sample_rate", None, _SPEAKER_HZ)
        config = cls(
            width=fields.size("enc_dim", 1024),
            mel_bins=fields.size("mel_dim", 128),
            channels=_sizes(fields, "enc_channels", (512, 512, 512, 512, 1536)),
            kernels=_sizes(fields, "enc_kernel_sizes", (5, 3, 3, 3, 1)),
            dilations=_sizes(fields, "enc_dilations", (1, 2, 3, 4, 1)),
            attention_channels=fields.size("enc_attention_channels", 128),
            scale=fields.size("enc_res2net_scale", 8),
            se_channels=fields.size("enc_se_channels", 128),
        )
        lists = (config.channels, config.kernels, config.dilations)
        if len({len(x) for x in lists}) != 1 or not 3 <= len(config.channels) <= 64:
            raise CheckpointError(
                f"config.json gives the speaker encoder lists of {[len(x) for x in lists]} blocks.",
                hint="enc_channels, enc_kernel_sizes and enc_dilations need one length, of at least 3.",
            )
        inner = config.channels[:-1]
        if len(set(inner)) != 1 or inner[0] % config.scale or config.channels[-1] != sum(inner[1:]):
            raise CheckpointError(
                f"config.json gives the speaker encoder channels {list(config.channels)} in {config.scale} groups.",
                hint="Blocks have one width, a multiple of enc_res2net_scale; the last takes blocks 1 on side by side.",
            )
        if config.width != width:
            raise CheckpointError(
                f"The speaker encoder gives vectors of {config.width}, the talker reads {width}.", hint=_FETCH
            )
        return config


@dataclass(frozen=True, slots=True)
class TTSConfig:
    """A Qwen3-TTS checkpoint.

    talker: over codebook 0 and control ids. predictor: the decoder of the other codebooks, one head for each.
    text_width: of the text embedding, before its projection. predictor_vocab: codes of a codebook. codebooks: K.
    languages: ids by lower-case name, dialects too. voices: ids of preset voices by lower-case name, in the file's
    order. dialects: by voice, the key of `languages` it speaks where the text is Chinese. speaker: in base models.
    """

    talker: DecoderConfig
    predictor: DecoderConfig
    text_width: int
    text_vocab: int
    codebooks: int
    ids: Ids
    languages: Mapping[str, int]
    voices: Mapping[str, int]
    dialects: Mapping[str, str]
    kind: str
    size: str
    speaker: SpeakerConfig | None = None

    @property
    def predictor_vocab(self) -> int:
        """Codes of a codebook."""
        return self.predictor.vocab_size

    @property
    def projected(self) -> bool:
        """Whether what the predictor reads is projected to its width (1.7B)."""
        return self.talker.hidden_size != self.predictor.hidden_size

    @classmethod
    def from_hf(cls, config: Mapping[str, Any]) -> Self:
        """From the official config.json.

        Raises:
            CheckpointError: another model, a missing field, or values that contradict each other.
        """
        top = json_fields(config, "qwen3_tts")
        top.expect("tokenizer_type", "qwen3_tts_tokenizer_12hz")
        top.expect("tts_model_type", *KINDS)
        top.expect("tts_model_size", *SIZES)
        inner = _nested(top, "talker_config")
        below = _nested(inner, "code_predictor_config")
        talker, predictor = _decoder(inner), _decoder(below)
        codebooks = inner.size("num_code_groups", most=MOST_CODEBOOKS)
        if below.size("num_code_groups", codebooks) != codebooks or codebooks < 2:
            raise CheckpointError(f"config.json says num_code_groups {codebooks} and another for the predictor.")
        text_vocab = inner.size("text_vocab_size", most=MOST["vocab_size"])
        voices = _named(inner, "spk_id", talker.vocab_size)
        languages = _named(inner, "codec_language_id", talker.vocab_size)
        kind = str(top.find("tts_model_type"))
        speaker = None
        if kind == "base":
            values = top.find("speaker_encoder_config") or {}
            speaker = SpeakerConfig.from_hf(_mapping(values, "speaker_encoder_config"), width=talker.hidden_size)
        return cls(
            talker,
            predictor,
            text_width=inner.size("text_hidden_size", most=MOST["hidden_size"]),
            text_vocab=text_vocab,
            codebooks=codebooks,
            ids=_ids(top, inner, text_vocab, talker.vocab_size),
            languages=languages,
            voices=voices,
            dialects=_dialects(inner, voices, languages),
            kind=kind,
            size=str(top.find("tts_model_size")),
            speaker=speaker,
        )


def _decoder(fields: Fields) -> DecoderConfig:
    """A Qwen3 decoder without embedding of its own; its heads are separate matrices."""
    fields.expect("hidden_act", None, "silu")
    fields.expect("use_sliding_window", None, False)
    heads, head_dim = fields.size("num_attention_heads"), fields.size("head_dim", 128)
    return DecoderConfig(
        vocab_size=fields.integer("vocab_size"),
        hidden_size=fields.integer("hidden_size"),
        intermediate_size=fields.integer("intermediate_size"),
        num_layers=fields.layers("num_hidden_layers"),
        num_heads=heads,
        num_kv_heads=fields.integer("num_key_value_heads", heads),
        head_dim=head_dim,
        max_positions=fields.integer("max_position_embeddings", 32768),
        ropes=((FULL, json_rope(fields, head_dim, default_theta=_THETA)),),
        norm_eps=fields.number("rms_norm_eps", 1e-6),
        qk_norm=True,
        attention_bias=fields.flag("attention_bias", False),
        tied=False,
    )


def _ids(top: Fields, inner: Fields, text_vocab: int, codec_vocab: int) -> Ids:
    text = ("im_start", "im_end", "assistant", "tts_pad", "tts_bos", "tts_eos")
    codec = {
        "codec_pad": "codec_pad_id", "codec_bos": "codec_bos_id", "codec_eos": "codec_eos_token_id",
        "think": "codec_think_id", "nothink": "codec_nothink_id", "think_bos": "codec_think_bos_id",
        "think_eos": "codec_think_eos_id",
    }  # fmt: skip
    found = {name: _id(top, f"{name}_token_id", text_vocab) for name in text}
    return Ids(**found, **{name: _id(inner, key, codec_vocab) for name, key in codec.items()})


def _id(fields: Fields, name: str, vocab: int) -> int:
    value = fields.integer(name)
    if not 0 <= value < vocab:
        raise CheckpointError(f"config.json says {value} for {name!r}; the vocabulary has {vocab} ids.", hint=_FETCH)
    return value


def _mapping(value: Any, name: str) -> Mapping[str, Any]:
    if not isinstance(value, Mapping):
        raise CheckpointError(f"config.json says {str(value)[:60]!r} for {name!r}; a table was expected.", hint=_FETCH)
    return value


def _nested(fields: Fields, name: str) -> Fields:
    return Fields(_mapping(fields.find(name), name), source=f"{name} of config.json")


def _named(fields: Fields, name: str, vocab: int) -> dict[str, int]:
    values = _mapping(fields.find(name) or {}, name)
    if len(values) > _MOST_NAMED:
        raise CheckpointError(f"config.json lists {len(values)} entries for {name!r}.", hint=_FETCH)
    entries = Fields(values, source=f"{name} of config.json")
    found: dict[str, int] = {}
    for key in values:
        lower, number = str(key).lower(), _id(entries, key, vocab)
        if found.setdefault(lower, number) != number:
            raise CheckpointError(
                f"config.json lists {lower!r:.60} twice for {name!r}, as {found[lower]} and as {number}.",
                hint="Names are read in any case: give them names that differ in more.",
            )
    return found


def _dialects(fields: Fields, voices: Mapping[str, int], languages: Mapping[str, int]) -> dict[str, str]:
    """`spk_is_dialect` holds false, or the name of the dialect."""
    out = {}
    for voice, dialect in _mapping(fields.find("spk_is_dialect") or {}, "spk_is_dialect").items():
        if dialect in (False, None):
            continue
        if str(voice).lower() not in voices or not isinstance(dialect, str) or dialect.lower() not in languages:
            raise CheckpointError(
                f"config.json gives the voice {str(voice)[:60]!r} the dialect {str(dialect)[:60]!r}.",
                hint="Both must be listed, in spk_id and codec_language_id.",
            )
        out[str(voice).lower()] = dialect.lower()
    return out


def _sizes(fields: Fields, name: str, default: tuple[int, ...]) -> tuple[int, ...]:
    listed = fields.listed(name)
    if listed is None:
        return default
    if len(listed) > 64:
        raise CheckpointError(f"config.json lists {len(listed)} values for {name!r}.", hint=_FETCH)
    parts = Fields({f"{name}[{i}]": value for i, value in enumerate(listed)}, source="config.json")
    return tuple(parts.size(f"{name}[{i}]") for i in range(len(listed)))
