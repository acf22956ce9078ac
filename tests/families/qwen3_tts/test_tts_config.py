"""The configuration of Qwen3-TTS: official values, the tiny checkpoints', and files that are damaged or hostile."""

from __future__ import annotations

import copy
import math

import pytest
import tiny_tts

from izwi_lab import catalog
from izwi_lab.errors import CheckpointError
from izwi_lab.families.qwen3_tts import weights
from izwi_lab.families.qwen3_tts.config import KINDS, TTSConfig

OFFICIAL = {
    "Qwen3-TTS-12Hz-0.6B-Base": ("base", "0b6", 1024),
    "Qwen3-TTS-12Hz-0.6B-CustomVoice": ("custom_voice", "0b6", 1024),
    "Qwen3-TTS-12Hz-1.7B-Base": ("base", "1b7", 2048),
    "Qwen3-TTS-12Hz-1.7B-CustomVoice": ("custom_voice", "1b7", 2048),
    "Qwen3-TTS-12Hz-1.7B-VoiceDesign": ("voice_design", "1b7", 2048),
}


@pytest.mark.parametrize("name", OFFICIAL)
def test_official_configs(name):
    kind, size, width = OFFICIAL[name]
    c = TTSConfig.from_hf(catalog.config(catalog.get(name)))
    assert (c.kind, c.size, c.talker.hidden_size, c.predictor.hidden_size) == (kind, size, width, 1024)
    assert c.projected == (size == "1b7") and c.codebooks == 16 and c.predictor_vocab == 2048
    assert (c.talker.num_layers, c.predictor.num_layers, c.talker.max_positions) == (28, 5, 32768)
    assert c.talker.qk_norm and not c.talker.tied and c.talker.vocab_size == 3072
    assert (c.text_width, c.text_vocab) == (2048, 151936)
    assert (c.ids.codec_eos, c.ids.tts_eos, c.ids.assistant, c.ids.think_eos) == (2150, 151673, 77091, 2157)
    assert c.languages["english"] == 2050 and len(c.languages) == 12
    if kind == "custom_voice":
        assert c.voices["vivian"] == 3065 and len(c.voices) == 9
        assert c.dialects == {"eric": "sichuan_dialect", "dylan": "beijing_dialect"}
    else:
        assert not c.voices and not c.dialects
    assert (c.speaker is None) == (kind != "base")
    if c.speaker:
        assert (c.speaker.width, c.speaker.scale, c.speaker.channels[-1]) == (width, 8, 1536)
    dialect = next(r for k, r in c.talker.ropes)
    assert dialect.gain == 1.0 and math.isclose(dialect.inv_freq[1], 1e6 ** (-2 / 128))


@pytest.mark.parametrize("projected", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_tiny_checkpoints_have_the_names_of_the_net(kind, projected):
    values = tiny_tts.config(kind, projected=projected)
    config = TTSConfig.from_hf(values)
    written = {n: w.shape for n, w in tiny_tts.weights(values).items() if not n.startswith("speaker_encoder.")}
    assert config.projected == projected and weights.shapes(config) == written
    assert config.talker.vocab_size - 1024 == config.predictor_vocab  # what may be drawn is what is a code
    assert min(config.ids.codec_pad, *config.languages.values()) >= config.predictor_vocab


def test_upper_case_names_are_read_as_lower_case():
    values = tiny_tts.config("custom_voice")
    talker = values["talker_config"]
    talker["spk_id"] = {"Eric": 70}
    talker["spk_is_dialect"] = {"Eric": "Sichuan_Dialect"}
    config = TTSConfig.from_hf(values)
    assert config.voices == {"eric": 70} and config.dialects == {"eric": "sichuan_dialect"}


BAD = {
    "another model": ({"model_type": "qwen3"}, "model_type 'qwen3'"),
    "another tokenizer": ({"tokenizer_type": "qwen3_tts_tokenizer_25hz"}, "tokenizer_25hz"),
    "unknown kind": ({"tts_model_type": "chorus"}, "chorus"),
    "no talker": ({"talker_config": None}, "talker_config"),
    "talker is a list": ({"talker_config": [1]}, "talker_config"),
    "id outside": ({"tts_eos_token_id": 320}, "tts_eos_token_id"),
    "id negative": ({"im_start_token_id": -1}, "im_start_token_id"),
    "id is text": ({"assistant_token_id": "x"}, "assistant_token_id"),
    "codec id outside": ({"talker_config.codec_eos_token_id": 1088}, "codec_eos_token_id"),
    "no codec id": ({"talker_config.codec_bos_id": None}, "codec_bos_id"),
    "language outside": ({"talker_config.codec_language_id": {"english": 4000}}, "english"),
    "voices as a list": ({"talker_config.spk_id": [["ryan", 1]]}, "spk_id"),
    "dialect of nobody": ({"talker_config.spk_is_dialect": {"nobody": "sichuan_dialect"}}, "nobody"),
    "unknown dialect": ({"talker_config.spk_is_dialect": {"eric": "klingon"}}, "klingon"),
    "dialect true": ({"talker_config.spk_is_dialect": {"eric": True}}, "True"),
    "too many layers": ({"talker_config.num_hidden_layers": 10**6}, "num_hidden_layers"),
    "too many codebooks": ({"talker_config.num_code_groups": 10**9}, "num_code_groups"),
    "one codebook": ({"talker_config.num_code_groups": 1}, "num_code_groups"),
    "other activation": ({"talker_config.hidden_act": "gelu"}, "gelu"),
    "sliding": ({"talker_config.use_sliding_window": True}, "use_sliding_window"),
    "yarn": ({"talker_config.rope_scaling": {"rope_type": "yarn", "factor": 4}}, "yarn"),
    "codebooks differ": ({"talker_config.code_predictor_config.num_code_groups": 8}, "num_code_groups"),
    "nan": ({"talker_config.rms_norm_eps": math.nan}, "rms_norm_eps"),
    "voices that differ in case": ({"talker_config.spk_id": {"Ann": 1, "ann": 2}}, "'ann' twice"),
    "speaker rate": ({"speaker_encoder_config.sample_rate": 16000}, "sample_rate"),
    "speaker width": ({"speaker_encoder_config.enc_dim": 32}, "vectors of 32"),
    "speaker lists": ({"speaker_encoder_config.enc_dilations": [1, 2]}, "blocks"),
    "speaker groups": ({"speaker_encoder_config.enc_res2net_scale": 5}, "groups"),
    "speaker bomb": ({"speaker_encoder_config.enc_channels": [16] * 100}, "enc_channels"),
    "speaker text": ({"speaker_encoder_config.enc_kernel_sizes": "5333"}, "enc_kernel_sizes"),
}


@pytest.mark.parametrize("name", BAD)
def test_damaged_and_hostile_values_are_refused_by_name(name):
    changes, shown = BAD[name]
    values = copy.deepcopy(tiny_tts.config("custom_voice" if "dialect" in name else "base"))
    for path, value in changes.items():
        *outer, last = path.split(".")
        at = values
        for key in outer:
            at = at[key]
        at[last] = value
    with pytest.raises(CheckpointError) as error:
        TTSConfig.from_hf(values)
    assert shown in str(error.value)


def test_weights_rules_leave_the_official_names():
    config = TTSConfig.from_hf(tiny_tts.config("base"))
    assert [r.name for r in weights.net_rules(config)] == [None]
    assert weights.net_rules(TTSConfig.from_hf(tiny_tts.config("custom_voice"))) == ()
