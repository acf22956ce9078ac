"""The nets: torch against MLX, native kernels against plain torch, and all against the reference's golden values."""

import dataclasses

import kokoro_reference as reference
import numpy as np
import pytest
import torch
from kokoro_models import tiny_model

from izwi_lab.backends import native
from izwi_lab.families.kokoro.source import source_spectrum
from izwi_lab.families.kokoro.steps import AcousticFeatures
from izwi_lab.families.shared.nets.conv_stack.kernels_torch import Kernels, Packed

EVERY_TAP = ("*",)


def styled(model):
    """The golden phonemes with the golden style."""
    prompt = model.tokenize(phonemes=reference.PHONEMES)
    return dataclasses.replace(prompt, extras={**prompt.extras, "style": reference.style()})


def spoken(model, *, noise: bool = False, seed: int = 0, curves=None):
    """(taps, prosody, audio) of the golden prompt.

    curves: pitch and energy to put in place of the net's. The source sums the pitch over time, so that differences in
    the last bit of it grow; with equal curves what follows can be compared closely.
    """
    prompt, session = styled(model), model.session(seed=seed)
    given = {} if curves is None else {name: curves[name][None] for name in ("F0", "N")}
    with model.tap(EVERY_TAP, replace=lambda name, value: given.get(name)) as taps:
        prosody = model.prefill(session, prompt)
        model.decode(session, prosody, noise=noise)
        audio = model.codec.decode(session.codes)
    return taps, prosody, audio


def relative(got: np.ndarray, wanted: np.ndarray) -> float:
    return float(np.abs(got - wanted).max() / np.abs(wanted).max())


@pytest.fixture(scope="module", params=["torch_tiny", "plain_tiny", "mlx_tiny"])
def tiny(request):
    return request.getfixturevalue(request.param)


def test_parameters_are_equal_on_both_backends(torch_tiny, mlx_tiny):
    torch_names = torch_tiny.backend.parameters(torch_tiny.net)
    assert torch_names == mlx_tiny.backend.parameters(mlx_tiny.net)
    assert len(torch_names) == 457 and torch_names["decoder.generator.ups.0.weight"] == (32, 16, 20)


def test_every_intermediate_equals_the_reference(tiny, golden):
    taps, prosody, _ = spoken(tiny)
    assert prosody.durations.tolist() == golden["durations"].tolist()
    assert len(set(prosody.durations.tolist())) >= 3
    for name in ("bert", "predictor.lstm", "text_encoder", "asr", "F0", "N", "generator.features"):
        assert relative(taps[name][0], golden[name]) < 2e-5, name
    # The reference sums phases in float32, which drifts; ours keeps them in float64 (see source.py).
    assert np.abs(taps["har_source"] - golden["har_source"]).max() < 2e-3


def test_the_vocoder_equals_the_reference_given_its_source(tiny, golden):
    prompt_style = reference.style()
    features = tiny.backend.array(golden["generator.features"][None], dtype="float32")
    har = source_spectrum(golden["har_source"], tiny.config)
    with tiny.backend.inference():
        style = tiny.backend.array(prompt_style[:, :128], dtype="float32")
        with tiny.tap(["generator.conv_post", "audio"]) as taps:
            tiny.net.samples(features, tiny.backend.array(golden["har"][None], dtype="float32"), style)
    assert relative(taps["generator.conv_post"][0], golden["generator.conv_post"]) < 2e-5
    assert relative(taps["audio"][0], golden["audio"]) < 2e-5
    # The spectrum is numpy's: magnitudes agree, phases where there is something to have a phase.
    loud = golden["har"][:, :11] > 1e-4
    turn = np.abs(np.exp(1j * har[:, 11:]) - np.exp(1j * golden["har"][:, 11:]))
    assert np.abs(har[:, :11] - golden["har"][:, :11]).max() < 1e-5 and turn[loud].max() < 1e-2


def test_torch_and_mlx_show_the_same_taps_in_the_same_order(torch_tiny, mlx_tiny, golden):
    ours, theirs = (spoken(m, noise=True, seed=11, curves=golden)[0] for m in (torch_tiny, mlx_tiny))
    assert list(ours) == list(theirs) and len(ours) > 30
    for name in ours:  # "audio" among them: one seed, one sound on both backends
        assert relative(ours[name], theirs[name]) < 5e-4, name


def test_native_kernels_equal_plain_torch(torch_tiny, plain_tiny, golden):
    blocks = list(torch_tiny.net.decoder.generator.resblocks)
    assert blocks[0].native is not None, native.status()
    assert plain_tiny.net.decoder.generator.resblocks[0].native is None
    ours, theirs = spoken(torch_tiny, curves=golden)[0], spoken(plain_tiny, curves=golden)[0]
    assert list(ours) == list(theirs)
    for name in ours:
        assert relative(ours[name], theirs[name]) < 1e-4, name


def test_without_taps_the_fused_path_gives_the_same_audio(torch_tiny):
    _, _, seen = spoken(torch_tiny, noise=True, seed=3)
    session = torch_tiny.session(seed=3)
    torch_tiny.decode(session, torch_tiny.prefill(session, styled(torch_tiny)))
    fused = torch_tiny.codec.decode(session.codes)
    assert relative(fused.samples, seen.samples) < 1e-4


@pytest.mark.parametrize("native", ["1", "0"])
def test_bfloat16_keeps_durations_and_pitch_exact(native, monkeypatch, torch_tiny):
    monkeypatch.setenv("IZWI_NATIVE", native)
    narrow = tiny_model("torch", "bfloat16")
    wide_taps, wide, _ = spoken(torch_tiny)
    taps, prosody, _ = spoken(narrow)
    assert prosody.durations.tolist() == wide.durations.tolist()
    assert relative(prosody.f0, wide.f0) < 1e-6 if native == "1" else relative(prosody.f0, wide.f0) < 1e-4
    assert relative(taps["generator.features"], wide_taps["generator.features"]) < 0.03


def test_a_tap_replaces_the_pitch(torch_tiny):
    prompt = torch_tiny.tokenize(phonemes=reference.PHONEMES)
    session = torch_tiny.session(seed=0)
    with torch_tiny.tap("F0", replace=lambda name, value: np.full_like(value, 220.0)) as taps:
        prosody = torch_tiny.prefill(session, prompt)
    assert np.all(prosody.f0 == 220.0) and np.all(taps["F0"] == 220.0)


@pytest.mark.skipif(not reference.available(), reason="the kokoro package is not installed")
@pytest.mark.filterwarnings("ignore")
def test_the_golden_values_are_those_of_the_reference(golden):
    made = reference.tiny_golden()
    assert made.keys() == golden.keys()
    for name, value in golden.items():
        assert np.abs(made[name] - value).max() <= 1e-4 * max(1.0, np.abs(value).max()) or name == "har", name


def test_features_say_their_size(torch_tiny):
    session = torch_tiny.session(seed=0)
    step = torch_tiny.decode(session, torch_tiny.prefill(session, torch_tiny.tokenize(phonemes="həlˈO")))
    assert isinstance(step.codes, AcousticFeatures) and step.codes.nbytes > step.codes.source.nbytes


def test_the_native_convolution_refuses_what_it_cannot_hold() -> None:
    library = native.library("kokoro", wait=True)
    if library is None:
        pytest.skip(f"no native kernels here: {native.status()['kokoro']}")
    kernels = Kernels(library)
    conv = Packed(kernels, torch.ones(4, 3, 3), None)
    with pytest.raises(ValueError, match="enough rows for one output"):
        kernels.convolve(torch.zeros(2, 3), conv)
    with pytest.raises(ValueError, match=r"out and residual of \[6, 4\]"):
        kernels.convolve(torch.zeros(8, 3), conv, residual=torch.zeros(5, 4))
