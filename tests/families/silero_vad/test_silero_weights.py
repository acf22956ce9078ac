"""Silero VAD with the published weights, and the published runtime as the judge."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from starter_weights import fetched

from izwi_lab.artifacts.silero_onnx_reader import open_folder
from izwi_lab.audio import Audio
from izwi_lab.backends.base import BackendPlan
from izwi_lab.errors import CheckpointError
from izwi_lab.families.silero_vad import model as silero

pytestmark = pytest.mark.weights


@pytest.fixture(scope="module")
def local():
    return fetched("Silero-VAD-v6")


@pytest.fixture(scope="module")
def real(local):
    from izwi_lab.backends.torch_backend import TorchBackend

    plan = BackendPlan("torch", "cpu", "float32", "test")
    backend = TorchBackend("cpu", "float32")
    return silero.load(local.variant, local.folder, plan, backend, layout=str(local.layout))


@pytest.fixture(scope="module")
def clip():
    folder = Path(__file__).parents[2] / "data" / "librivox"
    return Audio.open(folder / "sense_and_sensibility_01_austen_64kb-0870.flac")


def test_equals_onnxruntime(local, real, clip):
    import onnxruntime

    runtime = onnxruntime.InferenceSession(str(local.folder / "silero_vad.onnx"))
    state, expected = np.zeros((2, 1, 128), np.float32), []
    for frame in real.features(clip):
        feed = {"input": frame[None], "state": state, "sr": np.array(16_000, np.int64)}
        p, state = runtime.run(None, feed)
        expected.append(p.item())
    np.testing.assert_allclose(real.probabilities(clip), expected, atol=1e-5)


def test_finds_speech_between_pauses(real, clip):
    pause = Audio.silence(2.0, clip.rate_hz)
    joined = Audio.concat([pause, clip, pause, clip, pause])
    spans = real.speech(joined)
    assert spans[0][0] == pytest.approx(2.0, abs=0.4) and spans[-1][1] <= joined.duration_s - 1.5
    quiet = (2.0 + clip.duration_s + 0.4, 2.0 + clip.duration_s + 1.6)
    assert not any(a < quiet[1] and b > quiet[0] for a, b in spans)


def test_no_speech_in_silence_noise_or_hum(real):
    rng = np.random.default_rng(0)
    hum = 0.3 * np.sin(2 * np.pi * 50 / 16_000 * np.arange(80_000))
    for samples in (np.zeros(80_000), 0.05 * rng.standard_normal(80_000), hum):
        assert real.speech(Audio(samples.astype(np.float32), 16_000)) == []


def test_a_damaged_file_is_refused(local, tmp_path):
    whole = (local.folder / "silero_vad.onnx").read_bytes()
    for size in (10, 1_000, len(whole) // 2, len(whole) - 1):
        (tmp_path / "silero_vad.onnx").write_bytes(whole[:size])
        with pytest.raises(CheckpointError):
            open_folder(tmp_path)
