"""Silero VAD: both backends, frame by frame = whole, spans, and the ONNX reader's refusals."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from izwi_lab import catalog
from izwi_lab.artifacts.silero_onnx_reader import open_folder
from izwi_lab.audio import Audio
from izwi_lab.backends.base import BackendPlan
from izwi_lab.errors import AudioError, CheckpointError
from izwi_lab.families.silero_vad import model as silero
from izwi_lab.families.silero_vad.processor import Thresholds, frames_of, speech_spans


def load(name: str):
    if name == "torch":
        from izwi_lab.backends.torch_backend import TorchBackend

        backend = TorchBackend("cpu", "float32")
    else:
        from izwi_lab.backends.mlx_backend import MLXBackend

        backend = MLXBackend("cpu", "float32")
    plan = BackendPlan(name, "cpu", "float32", "test")
    return silero.load(catalog.get("Silero-VAD-v6"), None, plan, backend, layout="silero_onnx", load_format="dummy")


@pytest.fixture(scope="module")
def models():
    return {name: load(name) for name in ("torch", "mlx")}


@pytest.fixture
def noise() -> Audio:
    return Audio((np.random.default_rng(0).standard_normal(16_000) * 0.1).astype(np.float32), 16_000)


def test_backends_agree(models, noise):
    torch, mlx = models["torch"], models["mlx"]
    assert torch.backend.parameters(torch.net) == mlx.backend.parameters(mlx.net)
    seen = {}
    for name, model in models.items():
        with model.tap("*") as taps:
            model.probabilities(noise)
        seen[name] = taps
    assert list(seen["torch"]) == list(seen["mlx"]) == ["spectrum", "features", "lstm", "probability"]
    for tap in ("features", "lstm", "probability"):
        np.testing.assert_allclose(seen["torch"][tap], seen["mlx"][tap], atol=1e-4)


@pytest.mark.parametrize("name", ["torch", "mlx"])
@pytest.mark.parametrize("size", [1, 7])
def test_frame_by_frame_equals_whole(models, noise, name, size):
    model = models[name]
    frames = model.features(noise)
    session = model.session()
    parts = [model.decode(session, frames[n : n + size]) for n in range(0, len(frames), size)]
    np.testing.assert_allclose(np.concatenate(parts), model.probabilities(noise), atol=1e-5)
    assert session.position == len(frames) == 32


def test_frames():
    samples = np.arange(1, 1025, dtype=np.float32)
    frames = frames_of(samples)
    assert frames.shape == (2, 576)
    assert (frames[0, :64] == 0).all() and (frames[0, 64:] == samples[:512]).all()
    assert (frames[1] == samples[448:1024]).all()
    assert frames_of(samples[:1]).shape == (1, 576) and frames_of(samples[:0]).shape == (0, 576)


def test_spans():
    p = [0.1] * 10 + [0.9] * 20 + [0.4] * 3 + [0.9] * 5 + [0.1] * 10 + [0.9] * 3 + [0.0] * 9
    ((start, end),) = speech_spans(p, len(p) * 0.032, Thresholds())  # the short burst is no speech, the dip no pause
    assert start == pytest.approx(0.32 - 0.03) and end == pytest.approx(38 * 0.032 + 0.03)
    assert speech_spans([0.9] * 20, 0.64, Thresholds()) == [(0.0, 0.64)]
    assert speech_spans([], 0.0, Thresholds()) == []


@given(st.lists(st.floats(0, 1), max_size=300))
def test_spans_are_ordered_apart_and_inside(p):
    duration = len(p) * 0.032
    edges = [t for span in speech_spans(p, duration, Thresholds()) for t in span]
    assert edges == sorted(edges) and all(0 <= t <= duration for t in edges)


def test_faults(models):
    with pytest.raises(AudioError, match="empty"):
        models["torch"].speech(Audio(np.zeros(0, np.float32), 16_000))
    with pytest.raises(AudioError, match="NaN"):
        models["torch"].speech(Audio(np.full(9, np.nan, np.float32), 16_000))
    assert len(models["torch"].probabilities(Audio(np.zeros(1, np.float32), 16_000))) == 1


def test_reader_refuses_other_files(tmp_path):
    path = tmp_path / "silero_vad.onnx"
    with pytest.raises(CheckpointError, match="cannot be read"):
        open_folder(tmp_path)
    for body in (b"", b"\x00" * 50, b"\x3a\xff\xff\xff\x7f", b"\xff" * 40, b"hello, I am text"):
        path.write_bytes(body)
        with pytest.raises(CheckpointError):
            open_folder(tmp_path)
    with pytest.raises(CheckpointError, match="layout"):
        silero.load(None, tmp_path, None, None, layout="hf")
