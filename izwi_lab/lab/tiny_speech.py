"""A Qwen3-TTS small enough for any machine, with random weights: to take its steps without a download.

Everything is there and works as in the real one: the tokenizer (of bytes), the prompt, talker, code predictor, codec,
speaker encoder. What it says is noise.
"""

from __future__ import annotations

import json
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from izwi_lab.errors import InvalidInputError

if TYPE_CHECKING:
    from izwi_lab.backends.base import Backend
    from izwi_lab.codecs.qwen3_tts_12hz.model import Codec12Hz
    from izwi_lab.families.qwen3_tts.model import Qwen3TTS

KINDS = {"base": "Base", "custom_voice": "CustomVoice", "voice_design": "VoiceDesign"}
_CODES, _SPECIAL = 64, 1024  # codes of a codebook; ids after them that are no sounds
_SHIFT = 2048 - _CODES  # from the official ids to those of so small a vocabulary
_CONTROL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<tts_pad>", "<tts_text_bos>", "<tts_text_eod>")
_WORDS = ("assistant", "user")  # that must be one token each
_DECODER = {"head_dim": 16, "num_attention_heads": 4, "num_key_value_heads": 2, "num_hidden_layers": 4}
_WIDTH = 64
_CODEC_PACKAGE, _LAST, _QUIET = "izwi_lab.codecs.qwen3_tts_12hz", "decoder.decoder.6.weight", np.float32(1 / 500)


def tiny_tts(kind: str = "custom_voice", *, backend: str = "torch", seed: int = 0) -> Qwen3TTS:
    """A tiny model of a kind ("base", "custom_voice", "voice_design") on the CPU, with random weights.

    Raises:
        InvalidInputError: no such kind, or no seed.
    """
    from izwi_lab import catalog
    from izwi_lab.backends import open_backend
    from izwi_lab.backends.base import BackendPlan
    from izwi_lab.families.qwen3_tts import loader, weights
    from izwi_lab.families.qwen3_tts.config import TTSConfig
    from izwi_lab.families.qwen3_tts.model import Qwen3TTS
    from izwi_lab.families.qwen3_tts.processor import Processor

    if not isinstance(kind, str) or kind not in KINDS:
        raise InvalidInputError(f"There is no kind {kind!r:.60}.", hint=f"Kinds: {', '.join(KINDS)}.")
    if isinstance(seed, bool) or not isinstance(seed, (int, np.integer)) or seed < 0:
        raise InvalidInputError(f"seed must be a whole number from 0, got {seed!r:.80}.")
    row = catalog.get(f"Qwen3-TTS-12Hz-1.7B-{KINDS[kind]}")
    variant = replace(row, id=f"tiny {kind}", display_name=f"tiny {kind}")
    plan = BackendPlan(backend, "cpu", "float32", "so small that the CPU is best")
    made = open_backend(plan)
    tokenizer, ids = _tokenizer()
    config = TTSConfig.from_hf(_config(kind, catalog.config(row), ids))
    net = made.net(weights.PACKAGE, "TTSNet", config, None, seed=seed)
    speaker = None
    if config.speaker is not None:
        speaker = made.net(loader.SPEAKER, "SpeakerEncoder", config.speaker, None, keep_float32=("*",), seed=seed)
    sounds = _codec(made, seed)
    processor = Processor(tokenizer, config)
    return Qwen3TTS(variant, plan, made, net, config, sounds, processor=processor, speaker=speaker)


def _config(kind: str, official: dict[str, Any], ids: dict[str, int]) -> dict[str, Any]:
    """The official config.json with every size made small."""
    talker: dict[str, Any] = json.loads(json.dumps(official["talker_config"]))
    for name in ("codec_language_id", "spk_id"):
        talker[name] = {key: value - _SHIFT for key, value in talker[name].items()}
    for name in [n for n in talker if n.startswith("codec_") and isinstance(talker[n], int)]:
        talker[name] -= _SHIFT
    sizes = {**_DECODER, "hidden_size": _WIDTH, "intermediate_size": 96, "vocab_size": _CODES + _SPECIAL}
    talker |= sizes | {"text_hidden_size": 32, "text_vocab_size": max(ids.values()) + 1}
    talker["code_predictor_config"] |= {**sizes, "hidden_size": 32, "vocab_size": _CODES, "num_hidden_layers": 2}
    top = {
        **official,
        "talker_config": talker,
        "assistant_token_id": ids["assistant"],
        "im_start_token_id": ids["<|im_start|>"],
        "im_end_token_id": ids["<|im_end|>"],
        "tts_pad_token_id": ids["<tts_pad>"],
        "tts_bos_token_id": ids["<tts_text_bos>"],
        "tts_eos_token_id": ids["<tts_text_eod>"],
    }
    if kind == "base":
        small = {"enc_dim": _WIDTH, "enc_channels": [16, 16, 16, 16, 48], "enc_res2net_scale": 4}
        top["speaker_encoder_config"] = {**small, "enc_attention_channels": 8, "enc_se_channels": 8}
    return top


def _tokenizer() -> tuple[Any, dict[str, int]]:
    """A `tokenizers.Tokenizer` of bytes and the words that the prompt needs, and the ids of its tokens."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

    tokens, merges = sorted(pre_tokenizers.ByteLevel.alphabet()), []
    for word in _WORDS:
        for end in range(2, len(word) + 1):
            merges.append((word[: end - 1], word[end - 1]))
            tokens.append(word[:end])
    made = Tokenizer(models.BPE(vocab={token: i for i, token in enumerate(tokens)}, merges=merges))
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    made.add_special_tokens([AddedToken(name, special=True, normalized=False) for name in _CONTROL])
    return made, made.get_vocab()


def _codec(backend: Backend, seed: int) -> Codec12Hz:
    """The codec with an eighth of the official widths and less, its last convolution so small that nothing clips."""
    from izwi_lab.backends.loading import random_weight
    from izwi_lab.codecs.qwen3_tts_12hz import model, weights
    from izwi_lab.codecs.qwen3_tts_12hz.config import CodecConfig

    config = CodecConfig.from_hf(_CODEC)
    loud = model.load(None, backend, config=config, load_format="dummy")
    drawn = {name: random_weight(name, shape, seed) for name, shape in backend.parameters(loud.net).items()}
    drawn[_LAST] = replace(drawn[_LAST], data=drawn[_LAST].data * _QUIET)
    net = backend.net(_CODEC_PACKAGE, "CodecNet", config, drawn, keep_float32=weights.FLOAT32)
    return model.Codec12Hz(config, backend, net)


_ATTENTION = {"head_dim": 8, "num_attention_heads": 4, "num_key_value_heads": 4, "num_hidden_layers": 2}
_CODEC: dict[str, Any] = {
    "model_type": "qwen3_tts_tokenizer_12hz", "decode_upsample_rate": 1920, "encode_downsample_rate": 1920,
    "encoder_valid_num_quantizers": 16, "input_sample_rate": 24000, "output_sample_rate": 24000,
    "encoder_config": {
        **_ATTENTION, "audio_channels": 1, "codebook_dim": 8, "codebook_size": _CODES, "compress": 2,
        "dilation_growth_rate": 2, "frame_rate": 12.5, "hidden_act": "gelu", "hidden_size": 32,
        "intermediate_size": 48, "kernel_size": 7, "last_kernel_size": 3, "max_position_embeddings": 8000,
        "norm_eps": 1e-5, "num_filters": 4, "num_quantizers": 32, "num_residual_layers": 1,
        "num_semantic_quantizers": 1, "residual_kernel_size": 3, "rope_theta": 10000.0, "sampling_rate": 24000,
        "sliding_window": 250, "trim_right_ratio": 1.0, "upsample_groups": 32, "upsampling_ratios": [8, 6, 5, 4],
        "use_causal_conv": True, "use_conv_shortcut": False, "vector_quantization_hidden_dimension": 8,
    },
    "decoder_config": {
        **_ATTENTION, "codebook_dim": 16, "codebook_size": _CODES, "decoder_dim": 32, "hidden_act": "silu",
        "hidden_size": 16, "intermediate_size": 24, "latent_dim": 24, "max_position_embeddings": 8000,
        "num_quantizers": 16, "num_semantic_quantizers": 1, "rms_norm_eps": 1e-5, "rope_theta": 10000,
        "semantic_codebook_size": _CODES, "sliding_window": 72, "upsample_rates": [8, 5, 4, 3],
        "upsampling_ratios": [2, 2], "vector_quantization_hidden_dimension": 8,
    },
}  # fmt: skip
