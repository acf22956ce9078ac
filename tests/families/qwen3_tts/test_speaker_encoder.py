"""The speaker encoder: its features and its vector against the vendor's package, and torch against MLX."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from prompt_oracle import HIDDEN, Oracle
from qwen_tts.core.models.modeling_qwen3_tts import mel_spectrogram

from izwi_lab.artifacts.tensors import Tensor
from izwi_lab.backends import open_backend
from izwi_lab.backends.base import BackendPlan
from izwi_lab.families.qwen3_tts.config import SpeakerConfig
from izwi_lab.families.qwen3_tts.nets.speaker.mel import MARGIN, RATE_HZ, speaker_mel
from izwi_lab.families.shared.taps import tapping

PACKAGE = "izwi_lab.families.qwen3_tts.nets.speaker"
TOLERANCE = 2e-5  # of an embedding whose numbers are about 1


def clip(seconds: float) -> np.ndarray:
    rng, n = np.random.default_rng(0), np.arange(int(seconds * RATE_HZ))
    voiced = sum(np.sin(n * 0.03 * k + k) / k for k in (1, 2, 3, 5)) * (0.6 + 0.4 * np.sin(n * 0.0007))
    return (0.2 * voiced + 0.02 * rng.standard_normal(len(n))).astype(np.float32)


@pytest.fixture(scope="module")
def oracle(tmp_path_factory) -> Oracle:
    made = Oracle(tmp_path_factory.mktemp("base"), "base")
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in made.model.speaker_encoder.parameters():
            spread = (2.0 / parameter[0].numel()) ** 0.5 if parameter.dim() > 1 else 0.1
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * spread)
    return made


def encoder(oracle: Oracle, name: str):
    backend = open_backend(BackendPlan(name, "cpu", "float32", "test"))
    state = oracle.model.speaker_encoder.state_dict()
    tensors = {key: Tensor.of(value.numpy()) for key, value in state.items()}
    return backend, backend.net(PACKAGE, "SpeakerEncoder", oracle.config.speaker, tensors)


def embedded(backend, net, samples: np.ndarray) -> np.ndarray:
    return backend.numpy(net(backend.array(speaker_mel(samples)[None])))[0]


@pytest.mark.parametrize("seconds", [0.5, 1.3337, 7.0])
def test_features_are_the_vendors(seconds):
    samples = clip(seconds)
    expected = mel_spectrogram(torch.tensor(samples)[None], 1024, 128, RATE_HZ, 256, 1024, 0, 12000)[0].T.numpy()
    ours = speaker_mel(samples)
    assert ours.shape == expected.shape == (len(samples) // 256, 128) and ours.dtype == np.float32
    np.testing.assert_allclose(ours, expected, atol=1e-4)


def test_features_of_silence_and_of_many_frames():
    assert np.allclose(speaker_mel(np.zeros(MARGIN + 1, np.float32)), speaker_mel(np.zeros(2000, np.float32))[0])
    samples = clip(25.0)  # more than one block of frames
    ours = speaker_mel(samples)
    first = 2040 * 256
    np.testing.assert_allclose(ours[2044:2060], speaker_mel(samples[first:])[4:20], atol=1e-4)


@pytest.mark.parametrize("name", ["torch", "mlx"])
@pytest.mark.parametrize("seconds", [0.5, 3.21])
def test_the_vector_is_the_vendors(oracle, name, seconds):
    if name == "mlx":
        pytest.importorskip("mlx.core")
    samples = clip(seconds)
    expected = oracle.model.extract_speaker_embedding(samples, RATE_HZ).numpy()
    ours = embedded(*encoder(oracle, name), samples)
    assert ours.shape == expected.shape == (HIDDEN,)
    assert np.abs(expected).max() > 0.1, "a vector of zeros would show nothing"
    np.testing.assert_allclose(ours, expected, atol=TOLERANCE * max(1.0, np.abs(expected).max()))


def test_torch_and_mlx_see_the_same_inside(oracle):
    pytest.importorskip("mlx.core")
    seen = []
    for name in ("torch", "mlx"):
        backend, net = encoder(oracle, name)
        with tapping("speaker.*", numpy=backend.numpy, array=lambda host, like: host) as taps:
            embedded(backend, net, clip(1.0))
        seen.append(taps)
    blocks = len(oracle.config.speaker.channels) - 1
    names = [*(f"speaker.blocks.{n}" for n in range(blocks)), "speaker.mfa", "speaker.attention", "speaker.asp"]
    assert list(seen[0]) == list(seen[1]) == [*names, "speaker.embedding"]
    for name, value in seen[0].items():
        np.testing.assert_allclose(seen[1][name], value, atol=TOLERANCE * max(1.0, np.abs(value).max()), err_msg=name)


def test_a_batch_is_each_clip_alone(oracle):
    backend, net = encoder(oracle, "torch")
    mels = np.stack([speaker_mel(clip(1.0)), speaker_mel(clip(1.0)[::-1])])
    together = backend.numpy(net(backend.array(mels)))
    for mel, vector in zip(mels, together, strict=True):
        np.testing.assert_allclose(backend.numpy(net(backend.array(mel[None])))[0], vector, atol=1e-5)


@pytest.mark.parametrize("name", ["torch", "mlx"])
def test_names_and_shapes_at_full_size_are_the_official_ones(oracle, name):
    if name == "mlx":
        pytest.importorskip("mlx.core")
    backend = open_backend(BackendPlan(name, "cpu", "float32", "test"))
    shapes = backend.parameters(backend.net(PACKAGE, "SpeakerEncoder", SpeakerConfig(width=1024), None))
    tiny = set(oracle.model.speaker_encoder.state_dict())
    depth = SpeakerConfig(width=1024).scale - 1
    assert {n for n in shapes if ".res2net_block.blocks." not in n} == {
        n for n in tiny if ".res2net_block.blocks." not in n
    }
    assert f"blocks.3.res2net_block.blocks.{depth - 1}.conv.weight" in shapes
    assert tuple(shapes["fc.weight"]) == (1024, 3072, 1) and tuple(shapes["mfa.conv.weight"]) == (1536, 1536, 1)
