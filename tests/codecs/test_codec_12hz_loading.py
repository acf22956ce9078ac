"""Loading the 12 Hz codec: strict names, hostile configs, random weights, and the re-ordered transposed convolution."""

from __future__ import annotations

import copy
import json
from typing import Any

import numpy as np
import pytest
import tiny_codec_12hz as tiny
import torch
from codec_backends import open_backend
from safetensors.numpy import save_file

import izwi_lab
from izwi_lab.codecs.qwen3_tts_12hz import model
from izwi_lab.codecs.qwen3_tts_12hz.config import CodecConfig
from izwi_lab.codecs.qwen3_tts_12hz.weights import phases
from izwi_lab.errors import CheckpointError, WrongTaskError


def changed(**changes: Any) -> dict[str, Any]:
    """The tiny config with some values changed; `encoder__x` and `decoder__x` name fields of the halves."""
    config = copy.deepcopy(tiny.CONFIG)
    for name, value in changes.items():
        half, _, leaf = name.partition("__")
        target = config[f"{half}_config"] if leaf else config
        if value is None:
            target.pop(leaf or half)
        else:
            target[leaf or half] = value
    return config


def test_the_official_sizes_are_the_default():
    c = CodecConfig()
    assert (c.codebooks, c.rate_hz, c.frame_samples) == (16, 24_000, 1920)
    assert c.encoder.seanet.frame_samples == 1920
    assert (c.decoder.transformer.window, c.encoder.seanet.transformer.window) == (72, 250)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"model_type": "mimi"}, "model_type 'mimi'"),
        ({"decoder_config": None}, "'decoder_config'"),
        ({"decoder__sliding_window": None}, "sliding_window"),
        ({"decoder__sliding_window": 0}, "sliding_window"),
        ({"decoder__sliding_window": 10**9}, "sliding_window"),
        ({"decoder__num_hidden_layers": 10**6}, "num_hidden_layers"),
        ({"decoder__num_key_value_heads": 2}, "num_key_value_heads"),
        ({"decoder__head_dim": 7}, "head_dim 7"),
        ({"decoder__hidden_size": "wide"}, "hidden_size"),
        ({"decoder__upsample_rates": []}, "upsample_rates"),
        ({"decoder__upsample_rates": [8, 5, 4, 0]}, "upsample_rates"),
        ({"decoder__upsample_rates": "8543"}, "upsample_rates"),
        ({"decoder__upsample_rates": [8, 5, 4, 2]}, "one frame length"),
        ({"decoder__decoder_dim": 24}, "decoder_dim 24"),
        ({"decoder__num_quantizers": 8}, "num_quantizers"),
        ({"decoder__rope_theta": float("nan")}, "rope_theta"),
        ({"decoder__hidden_act": "relu"}, "hidden_act"),
        ({"encoder__use_causal_conv": False}, "use_causal_conv"),
        ({"encoder__num_quantizers": 8}, "of 8 codes"),
        ({"encoder__codebook_size": 128}, "codebook_size"),
        ({"encode_downsample_rate": 960}, "encode_downsample_rate"),
        ({"input_sample_rate": 16_000}, "input_sample_rate"),
    ],
)
def test_a_config_that_is_no_such_codec_is_refused_by_name(changes, said):
    with pytest.raises(CheckpointError, match=said):
        CodecConfig.from_hf(changed(**changes))


def test_a_broken_config_file_is_refused(tmp_path):
    folder = tiny.write(tmp_path)
    (folder / "config.json").write_text('{"model_type": ', encoding="utf-8")
    with pytest.raises(CheckpointError, match=r"config\.json"):
        model.load(folder, open_backend("torch"))
    with pytest.raises(CheckpointError, match="needs a folder"):
        model.load(None, open_backend("torch"))


@pytest.mark.parametrize(
    ("lost", "said"),
    [
        ("decoder.pre_conv.conv.weight", r"missing +decoder\.pre_conv\.weight"),
        ("decoder.decoder.2.block.1.conv.bias", r"missing +decoder\.decoder\.2\.block\.1\.bias"),
        ("decoder.quantizer.rvq_rest.vq.layers.3._codebook.cluster_usage", r"lacks codebooks \[3\] of the rest"),
        ("encoder.encoder.layers.4.block.3.conv.weight", r"missing +encoder\.seanet\.residuals\.1\.conv2\.weight"),
    ],
)
def test_a_missing_tensor_is_named(tmp_path, lost, said):
    folder, weights = tiny.write(tmp_path), tiny.weights()
    del weights[lost]
    save_file(weights, str(folder / "model.safetensors"))
    with pytest.raises(CheckpointError, match=said):
        model.load(folder, open_backend("torch"))


def test_a_tensor_too_many_or_of_another_shape_is_named(tmp_path):
    folder, weights = tiny.write(tmp_path), tiny.weights()
    weights["decoder.extra.weight"] = np.zeros(3, np.float32)
    weights["decoder.pre_conv.conv.bias"] = np.zeros(5, np.float32)
    save_file(weights, str(folder / "model.safetensors"))
    with pytest.raises(CheckpointError, match=r"(?s)unexpected +decoder\.extra.*shape +decoder\.pre_conv\.bias"):
        model.load(folder, open_backend("torch"))


def test_codebooks_of_other_shapes_are_named(tmp_path):
    folder, weights = tiny.write(tmp_path), tiny.weights()
    weights["decoder.quantizer.rvq_rest.vq.layers.3._codebook.embedding_sum"] = np.zeros((7, 8), np.float32)
    save_file(weights, str(folder / "model.safetensors"))
    with pytest.raises(CheckpointError, match=r"layers\.3.*\[7, 8\]"):
        model.load(folder, open_backend("torch"))


def test_names_and_shapes_are_equal_on_both_backends():
    shapes = []
    for name in ("torch", "mlx"):
        backend = open_backend(name)
        codec = model.load(None, backend, config=CodecConfig.from_hf(tiny.CONFIG), load_format="dummy")
        shapes.append(backend.parameters(codec.net))
        assert np.isfinite(codec.decode(np.zeros((16, 3), np.int32)).samples).all()
    assert shapes[0] == shapes[1]


def test_sizes_given_hold_in_place_of_the_folders(tmp_path):
    folder = tiny.write(tmp_path)
    (folder / "config.json").write_text(json.dumps(changed(decoder__sliding_window=1)), encoding="utf-8")
    codes = np.random.default_rng(0).integers(0, 64, (16, 12))
    given = model.load(folder, open_backend("torch"), config=CodecConfig.from_hf(tiny.CONFIG)).decode(codes).samples
    alone = model.load(folder, open_backend("torch")).decode(codes).samples
    assert np.abs(given - alone).max() > 1e-3


@pytest.mark.parametrize(("kernel", "rate"), [(2, 2), (16, 8), (9, 3)])
def test_a_transposed_convolution_is_a_causal_one_with_more_outputs(kernel, rate):
    rng = np.random.default_rng(kernel)
    weight = rng.standard_normal((5, 3, kernel)).astype(np.float32)
    x = torch.tensor(rng.standard_normal((1, 5, 11)).astype(np.float32))
    expected = torch.nn.functional.conv_transpose1d(x, torch.tensor(weight), stride=rate)[..., : 11 * rate]
    padded = torch.nn.functional.pad(x, (kernel // rate - 1, 0))
    found = torch.nn.functional.conv1d(padded, torch.tensor(phases(weight, rate)))  # [1, rate * 3, 11]
    found = found.unflatten(1, (rate, 3)).permute(0, 2, 3, 1).flatten(2)
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)
    with pytest.raises(CheckpointError, match="whole times 4"):
        phases(np.zeros((2, 2, 6), np.float32), 4)


def test_the_codec_of_a_folder_is_known_and_loads_by_itself(tmp_path, monkeypatch):
    monkeypatch.setenv("IZWI_MODELS_DIR", str(tmp_path / "models"))
    folder = tiny.write(tmp_path / "speech_tokenizer")
    codes = np.arange(48).reshape(16, 3)
    for backend in ("torch", "mlx"):
        codec = izwi_lab.load(folder, backend=backend, device="cpu", dtype="float32")
        assert isinstance(codec, model.Codec12Hz) and codec.variant.family == "qwen3_tts_12hz"
        assert f"16 codebooks, 12.5 frames/s, 24000 Hz, {backend} cpu" in repr(codec)
        np.testing.assert_allclose(
            codec.decode(codes).samples, model.load(folder, open_backend("torch")).decode(codes).samples, atol=1e-6
        )
    with izwi_lab.InferenceEngine(device="cpu") as engine:
        assert engine.load(folder).nbytes > 0
        with engine.use(folder) as held:
            assert len(held.decode(codes)) == 3 * 1920
        with pytest.raises(WrongTaskError, match="tokenizer"):
            engine.speak("Hello.", model=folder)
