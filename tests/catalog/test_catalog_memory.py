"""Configs kept as data, and what they say about memory."""

from __future__ import annotations

from dataclasses import dataclass

import pytest

from izwi_lab import catalog
from izwi_lab.catalog import Layout
from izwi_lab.catalog.memory import attention_caches
from izwi_lab.errors import InvalidInputError

ROWS = catalog.variants(include_disabled=True)
WITHOUT_CONFIG = {"LFM2-Audio-1.5B", "LFM2.5-Audio-1.5B", "Silero-VAD-v6"}


@dataclass(frozen=True)
class Memory:
    memory_bytes: int
    available_bytes: int
    name: str = "cpu"


ROOMY = Memory(64 * 10**9, 48 * 10**9)


def test_the_rows_without_a_config_are_known_and_raise():
    assert {v.id for v in ROWS if not catalog.has_config(v)} == WITHOUT_CONFIG
    for name in WITHOUT_CONFIG:
        with pytest.raises(InvalidInputError, match="known only in part"):
            catalog.config(catalog.get(name))


@pytest.mark.parametrize("variant", [v for v in ROWS if v.id not in WITHOUT_CONFIG], ids=str)
def test_a_config_says_where_it_is_from_and_is_a_fresh_copy(variant):
    first = catalog.config(variant)
    assert catalog.config_source(variant).partition(":")[0] in {"copy", "file", "derived"}
    first.clear()
    assert catalog.config(variant)
    assert ("quantization" in catalog.config(variant)) == variant.quantisation.endswith("bit")


def test_a_variant_from_outside_the_catalog_reaches_no_file():
    import dataclasses

    outside = dataclasses.replace(catalog.get("Kokoro-82M"), id="../configs/Kokoro-82M")
    assert not catalog.has_config(outside)


def _decoder_parameters(c: dict) -> int:
    """Parameters of a tied decoder LM, from its config alone: Llama, Qwen3 (q/k norms), Gemma 3 (four norms)."""
    hidden, heads, kv = c["hidden_size"], c["num_attention_heads"], c["num_key_value_heads"]
    dim = c.get("head_dim") or hidden // heads
    normed = c["model_type"] in ("qwen3", "gemma3_text")
    layer = hidden * dim * (2 * heads + 2 * kv) + 3 * hidden * c["intermediate_size"]
    layer += (4 if c["model_type"] == "gemma3_text" else 2) * hidden + (2 * dim if normed else 0)
    return c["vocab_size"] * hidden + c["num_hidden_layers"] * layer + hidden


@pytest.mark.parametrize(
    "name",
    [
        *("SmolLM2-135M-Instruct", "Qwen3-0.6B", "Qwen3-1.7B", "Qwen3-4B"),
        *("Gemma-3-270m", "Gemma-3-1b-it", "Gemma-3-4b-it"),
    ],
)
def test_parameters_follow_from_the_config(name):
    variant = catalog.get(name)
    values = catalog.config(variant)
    assert _decoder_parameters(values.get("text_config", values)) == variant.parameters


@pytest.mark.parametrize("name", ["LFM2-350M", "LFM2-700M", "LFM2-1.2B"])
def test_lfm2_parameters_follow_from_the_config(name):
    variant = catalog.get(name)
    c = catalog.config(variant)
    d, layers, attending = c["hidden_size"], c["num_hidden_layers"], len(c["full_attn_idxs"])
    head = d // c["num_attention_heads"]
    width = 256 * -(-int(2 * c["block_ff_dim"] / 3) // 256)
    attention = 2 * d * d + 2 * d * head * c["num_key_value_heads"] + 2 * head
    conv = 4 * d * d + c["conv_L_cache"] * d
    every = c["vocab_size"] * d + d + layers * (3 * d * width + 2 * d)
    assert every + attending * attention + (layers - attending) * conv == variant.parameters


@pytest.mark.parametrize("name", ["Whisper-tiny.en", "Whisper-base", "Whisper-large-v3-turbo"])
def test_whisper_parameters_follow_from_the_config(name):
    variant = catalog.get(name)
    c = catalog.config(variant)
    d, f = c["d_model"], c["encoder_ffn_dim"]
    attention, ffn, norm = 4 * d * d + 3 * d, 2 * d * f + d + f, 2 * d  # k_proj has no bias
    encoder = (c["num_mel_bins"] * 3 * d + d) + (d * 3 * d + d) + c["max_source_positions"] * d + norm
    encoder += c["encoder_layers"] * (attention + ffn + 2 * norm)
    decoder = (c["vocab_size"] + c["max_target_positions"]) * d + norm
    decoder += c["decoder_layers"] * (2 * attention + ffn + 3 * norm)
    assert encoder + decoder == variant.parameters


def test_kv_bytes_of_a_llama_by_hand():
    smol = catalog.get("SmolLM2-135M-Instruct")
    result = catalog.fit(ROOMY, smol, context=1000, dtype="float32")
    assert result.kv_bytes == 2 * 30 * 3 * 64 * 1000 * 4
    assert result.weights_bytes == 134_515_008 * 4
    assert result.total_bytes == result.kv_bytes + result.weights_bytes
    assert result.fits and result.available_bytes == ROOMY.available_bytes
    assert "fits" in result.explanation and "1000 tokens" in result.explanation
    assert catalog.fit(ROOMY, smol, context=1000, dtype="float32", sequences=3).kv_bytes == 3 * result.kv_bytes


def test_kv_bytes_of_whisper_do_not_grow_with_the_context_of_a_text_model():
    whisper = catalog.get("Whisper-base")
    assert catalog.fit(ROOMY, whisper).kv_bytes == 2 * 6 * 512 * (448 + 1500) * 2


def test_sliding_layers_keep_their_window_only():
    gemma = catalog.get("Gemma-3-1b-it")
    short, long = (catalog.fit(ROOMY, gemma, context=n).kv_bytes for n in (512, 8192))
    assert short == 2 * 26 * 256 * 512 * 2
    assert long == short + 2 * 4 * 256 * (8192 - 512) * 2, "4 of 26 layers are global"


def test_only_layers_with_attention_keep_keys():
    kept = catalog.fit(ROOMY, catalog.get("LFM2-1.2B"), context=1000, dtype="float32").kv_bytes
    assert kept == 2 * 6 * 8 * 64 * 1000 * 4, "10 of 16 layers are convolutions"


def test_a_talker_counts_its_code_predictor():
    caches = attention_caches(catalog.config(catalog.get("Qwen3-TTS-12Hz-0.6B-Base")))
    assert [(c.layers, c.fixed) for c in caches] == [(28, None), (5, 17)]


def test_models_without_a_past_and_without_a_config_say_so():
    assert catalog.fit(ROOMY, catalog.get("Kokoro-82M")).kv_bytes == 0
    assert "keeps no past" in catalog.fit(ROOMY, catalog.get("Kokoro-82M")).explanation
    assert "no config for this model" in catalog.fit(ROOMY, catalog.get("LFM2-Audio-1.5B")).explanation


def test_quantised_weights_count_as_stored_and_dense_ones_as_computed():
    mlx = catalog.get("Qwen3-0.6B-4bit")
    assert catalog.fit(ROOMY, mlx, dtype="float32").weights_bytes == mlx.size_bytes
    smol = catalog.get("SmolLM2-135M-Instruct")
    gguf = catalog.fit(ROOMY, smol, layout=Layout.GGUF, dtype="float32").weights_bytes
    assert smol.starter.installed_bytes <= gguf < 134_515_008
    tts = catalog.get("Qwen3-TTS-12Hz-0.6B-Base")
    assert catalog.fit(ROOMY, tts, dtype="float32").weights_bytes == 2 * tts.size_bytes


def test_too_small_a_device_and_one_that_does_not_tell():
    voxtral = catalog.get("voxtral")
    small = catalog.fit(Memory(8 * 10**9, 4 * 10**9), voxtral)
    assert not small.fits and "too large" in small.explanation
    unknown = catalog.fit(Memory(0, 0), voxtral)
    assert unknown.fits and "could not be read" in unknown.explanation


@pytest.mark.parametrize(
    "wrong", [{"context": 0}, {"context": -1}, {"context": 8193}, {"dtype": "int3"}, {"sequences": 0}]
)
def test_what_cannot_be_reckoned_raises(wrong):
    with pytest.raises(InvalidInputError):
        catalog.fit(ROOMY, catalog.get("SmolLM2-135M-Instruct"), **wrong)


@pytest.mark.parametrize("variant", ROWS, ids=str)
def test_every_variant_can_be_reckoned(variant):
    result = catalog.fit(ROOMY, variant)
    assert result.weights_bytes > 0 and result.kv_bytes >= 0 and variant.id in result.explanation
