"""Loading of Qwen3-TTS: MLX folders with packed weights, random weights, and folders that are not whole."""

from __future__ import annotations

import json
import shutil
from functools import partial
from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest
import tiny_tts
from safetensors.numpy import load_file, save_file
from tts_models import GREEDY, checkpoint, clip, ours, tiny_codec

from izwi_lab import catalog
from izwi_lab.backends import open_backend
from izwi_lab.backends.base import BackendPlan
from izwi_lab.codecs.qwen3_tts_12hz.config import CodecConfig
from izwi_lab.errors import CheckpointError, InvalidInputError
from izwi_lab.families.qwen3_tts import loader, weights
from izwi_lab.families.qwen3_tts.config import TTSConfig

BACKENDS = ("torch", "mlx")
VARIANT = catalog.get("Qwen3-TTS-12Hz-1.7B-Base")


@pytest.fixture(scope="module")
def base(tmp_path_factory) -> Path:
    return checkpoint(tmp_path_factory.mktemp("base") / "c", "base")


def write_mlx(source: Path, folder: Path, *, bits: int, expanded: bool = False) -> Path:
    """The folder as MLX's converter writes it: Linears packed, convolutions with channels last.

    expanded: an official folder with the values that the packed weights stand for.
    """
    shutil.copytree(source, folder)
    values = json.loads((folder / "config.json").read_text("utf-8"))
    out = {}
    for name, value in load_file(source / "model.safetensors").items():
        if value.ndim == 2 and "embedding" not in name:
            packed, scales, biases = mx.quantize(mx.array(value), group_size=32, bits=bits)
            if expanded:
                out[name] = mx.dequantize(packed, scales, biases, group_size=32, bits=bits)
            else:
                stem = name.removesuffix("weight")
                out |= {name: packed, f"{stem}scales": scales, f"{stem}biases": biases}
        else:
            turned = value.ndim == 3 and not expanded
            out[name] = mx.array(value.transpose(0, 2, 1) if turned else value)
    mx.save_safetensors(str(folder / "model.safetensors"), out, metadata={"format": "pt" if expanded else "mlx"})
    if not expanded:
        values["quantization"] = {"group_size": 32, "bits": bits}
    (folder / "config.json").write_text(json.dumps(values), encoding="utf-8")
    return folder


def loaded(folder: Path | None, backend: str, *, layout: str = "mlx", load_format: str = "auto"):
    plan = BackendPlan(backend, "cpu", "float32", "test")
    return loader.load(VARIANT, folder, plan, open_backend(plan), layout=layout, load_format=load_format)


@pytest.mark.parametrize("bits", [4, 8])
def test_a_packed_mlx_folder_says_what_its_values_say(base, tmp_path, bits):
    packed = write_mlx(base, tmp_path / "packed", bits=bits)
    dense = ours(write_mlx(base, tmp_path / "dense", bits=bits, expanded=True))
    voice = dense.voice(clip(1.0), "hello")
    expected = dense.generate("hello", voice=voice, max_frames=6, **GREEDY)
    for backend in BACKENDS:
        model = loaded(packed, backend)
        np.testing.assert_allclose(model.voice(clip(1.0)).embedding, voice.embedding, atol=1e-4)
        speech = model.generate("hello", voice=voice, max_frames=6, **GREEDY)
        np.testing.assert_allclose(speech.audio.samples, expected.audio.samples, atol=1e-4)
        assert model.nbytes < dense.nbytes


@pytest.mark.parametrize("table", [None, {"bits": 4, "group_size": 32}])
@pytest.mark.parametrize("backend", BACKENDS)
def test_random_weights_of_a_variants_size(monkeypatch, tmp_path, backend, table):
    config = CodecConfig.from_hf(json.loads((tiny_codec().write(tmp_path) / "config.json").read_text("utf-8")))
    monkeypatch.setattr(loader.codec_model, "load", partial(loader.codec_model.load, config=config))
    monkeypatch.setattr(catalog, "config", lambda variant: tiny_tts.config("base") | {"quantization": table})
    model = loaded(None, backend, load_format="dummy")
    assert model.config.kind == "base" and model.speaker is not None and model.nbytes > 100_000
    with pytest.raises(InvalidInputError, match="no tokenizer"):
        model.tokenize("Hello.")
    assert model.voice(clip(1.0)).embedding.shape == (64,)


def test_folders_that_are_not_whole_say_what_is_missing(base, tmp_path):
    def broken(name: str, change) -> Path:
        folder = tmp_path / name
        shutil.copytree(base, folder)
        change(folder)
        return folder

    def told(text: str):
        return lambda folder: (folder / "generation_config.json").write_text(text, encoding="utf-8")

    for folder, message in (
        (broken("no codec", lambda f: shutil.rmtree(f / "speech_tokenizer")), "speech_tokenizer"),
        (broken("no words", lambda f: (f / "merges.txt").unlink()), "merges.txt"),
        (broken("no weights", lambda f: (f / "model.safetensors").unlink()), "safetensors"),
        (broken("odd", told("[1]")), "not a JSON object"),
        (broken("cut", told('{"top_k": 5')), "Cannot read"),
        (broken("hot", told('{"temperature": -3}')), "temperature"),
    ):
        with pytest.raises(CheckpointError, match=message):
            loaded(folder, "torch", layout="hf")
    with pytest.raises(CheckpointError, match="layout 'gguf'"):
        loaded(base, "torch", layout="gguf")
    with pytest.raises(InvalidInputError, match="needs its files"):
        loaded(None, "torch")


@pytest.mark.parametrize(
    ("part", "changes", "message"),
    [
        ("", {"num_code_groups": 8, "code_predictor_config.num_code_groups": 8}, "has 8 codebooks.*has 16"),
        ("", {"code_predictor_config.vocab_size": 32}, "has 32 codes of a codebook.*has 64"),
        ("codec", {"output_sample_rate": 48000, "input_sample_rate": 48000}, "has 12.5 frames a second.*has 25"),
    ],
)
def test_a_codec_that_is_not_the_talkers_is_refused(base, tmp_path, part, changes, message):
    folder = tmp_path / "c"
    shutil.copytree(base, folder)
    path = folder / "speech_tokenizer" / "config.json" if part else folder / "config.json"
    values = json.loads(path.read_text("utf-8"))
    for name, value in changes.items():
        at = values if part else values["talker_config"]
        *outer, last = name.split(".")
        for key in outer:
            at = at[key]
        at[last] = value
    path.write_text(json.dumps(values), encoding="utf-8")
    if not part:  # weights of the other sizes, so that nothing else is amiss
        held = weights.shapes(TTSConfig.from_hf(values))
        made = tiny_tts.weights(values).items()
        kept = {name: w for name, w in made if name in held or name.startswith("speaker_encoder.")}
        save_file(kept, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(CheckpointError, match=message):
        ours(folder)


def test_without_a_generation_config_the_references_defaults_hold(base, tmp_path):
    shutil.copytree(base, tmp_path / "c")
    (tmp_path / "c" / "generation_config.json").unlink()
    assert ours(tmp_path / "c").generation.max_frames == 2048
