"""The 12 Hz codec against the vendor's: samples, codes, any chunking, and what it refuses."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny_codec_12hz as tiny
import torch
from codec_backends import open_backend
from tiny_codec_12hz import CODEBOOK_SIZE

from izwi_lab.audio import Audio
from izwi_lab.backends import native
from izwi_lab.cancel import CancelToken
from izwi_lab.codecs.qwen3_tts_12hz import model
from izwi_lab.codecs.qwen3_tts_12hz.model import Codec12Hz
from izwi_lab.errors import AudioError, Cancelled, InvalidInputError

FRAME = 1920


def codes_of(frames: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, CODEBOOK_SIZE, (16, frames)).astype(np.int32)


def clip(samples: int) -> np.ndarray:
    """A tone with noise: neighbouring frames have different codes."""
    noise = np.random.default_rng(samples).standard_normal(samples)
    return (0.4 * np.sin(np.arange(samples) * 0.05) + 0.05 * noise).astype(np.float32)


def whole(vendor: Any, codes: np.ndarray) -> np.ndarray:
    """The vendor's decoder in one pass."""
    with torch.inference_mode():
        return vendor.model.decoder(torch.tensor(codes)[None].long())[0, 0].numpy()


@pytest.fixture(scope="module")
def long_codes() -> np.ndarray:
    return codes_of(130)


@pytest.fixture(scope="module")
def long_samples(vendor: Any, long_codes: np.ndarray) -> np.ndarray:
    return whole(vendor, long_codes)


def test_samples_are_the_vendors_far_past_the_window(codec, vendor, long_codes, long_samples):
    public = vendor.decode([{"audio_codes": torch.tensor(long_codes.T.copy())}])[0][0]
    np.testing.assert_allclose(public, long_samples, atol=1e-6)
    audio = codec.decode(long_codes)
    assert audio.rate_hz == codec.rate_hz == 24_000 and len(audio.samples) == 130 * FRAME
    assert 0.02 < np.abs(long_samples).max() < 0.99  # nothing is hidden by the clamp
    np.testing.assert_allclose(audio.samples, long_samples, atol=1e-6)


def test_the_window_matters_and_so_does_all_of_the_past_it_holds(codec, long_codes, long_samples):
    late = codec.decode(long_codes[:, 100:]).samples
    assert np.abs(late[-FRAME:] - long_samples[-FRAME:]).max() < 1e-6  # two layers see 2 * 5 frames back, convs some
    assert np.abs(late[: 6 * FRAME] - long_samples[100 * FRAME : 106 * FRAME]).max() > 1e-3


def test_beyond_300_frames_the_vendors_pieces_are_the_approximation(codec_folder, vendor):
    codes = codes_of(310)
    ours, one_pass = model.load(codec_folder, open_backend("torch")).decode(codes).samples, whole(vendor, codes)
    np.testing.assert_allclose(ours, one_pass, atol=1e-6)
    pieces = vendor.decode([{"audio_codes": torch.tensor(codes.T.copy())}])[0][0]
    np.testing.assert_allclose(ours[: 300 * FRAME], pieces[: 300 * FRAME], atol=1e-6)


@pytest.mark.parametrize("size", [1, 2, 3, 7, 25])
def test_any_chunking_gives_the_samples_of_the_whole(codec, long_codes, long_samples, size):
    stream = codec.stream()
    pieces = [stream.push(long_codes[:, i : min(60, i + size)]) for i in range(0, 60, size)]  # ten windows
    assert [len(p) for p in pieces[:2]] == [size * FRAME] * 2 and pieces[0].dtype == np.float32
    np.testing.assert_allclose(np.concatenate(pieces), long_samples[: 60 * FRAME], atol=1e-6)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_on_native_kernels_no_bit_depends_on_the_chunking(tmp_path, dtype):
    """With widths of whole vectors, as the official ones are: the rest of a row goes through other instructions."""
    sizes = {"hidden_size": 32, "intermediate_size": 32, "latent_dim": 32, "decoder_dim": 256, "codebook_dim": 32}
    sizes |= {"head_dim": 64, "num_attention_heads": 2, "num_key_value_heads": 2, "sliding_window": 16}
    config = tiny.CONFIG | {"decoder_config": tiny.DECODER | sizes}
    codec = model.load(tiny.write(tmp_path, config=config), open_backend("torch", dtype))
    library = native.library("kokoro", wait=True)
    assert library is not None, native.status()
    if dtype == "bfloat16" and not library.kokoro_has_bf16():
        pytest.skip("this CPU has no bfloat16 products")
    assert codec.net.decoder.pre_conv.causal is not None
    codes, stream, odd = codes_of(33), codec.stream(), codec.stream()
    whole_clip = codec.decode(codes).samples
    np.testing.assert_array_equal(np.concatenate([stream.push(codes[:, i : i + 1]) for i in range(33)]), whole_clip)
    np.testing.assert_array_equal(np.concatenate([odd.push(codes[:, :20]), odd.push(codes[:, 20:])]), whole_clip)


def test_a_stream_holds_no_more_after_the_window_is_full(codec, long_codes):
    stream, held = codec.stream(), []
    assert stream.nbytes == 0 and len(stream.push(long_codes[:, :0])) == 0
    for i in range(0, 30, 3):
        stream.push(long_codes[:, i : i + 3])
        held.append(stream.nbytes)
    assert 0 < held[0] <= held[2] == held[-1]
    assert "30 frames, 2.40 s" in repr(stream)


def test_a_fork_goes_its_own_way(codec, long_codes, long_samples):
    stream = codec.stream()
    stream.push(long_codes[:, :40])
    fork = stream.fork()
    other = fork.push(codes_of(9, seed=5))
    np.testing.assert_allclose(stream.push(long_codes[:, 40:49]), long_samples[40 * FRAME : 49 * FRAME], atol=1e-6)
    assert np.abs(other - long_samples[40 * FRAME : 49 * FRAME]).max() > 1e-2
    assert fork.frames == stream.frames == 49


@pytest.mark.parametrize("skipped", [1, 9, 10, 11, 100])
def test_what_follows_skipped_codes_is_as_if_they_had_been_heard(codec, long_codes, long_samples, skipped):
    assert codec.config.decoder.past_frames == 10
    stream = codec.stream()
    stream.skip(long_codes[:, :skipped])
    assert stream.frames == skipped
    following = stream.push(long_codes[:, skipped : skipped + 12])
    np.testing.assert_allclose(following, long_samples[skipped * FRAME : (skipped + 12) * FRAME], atol=1e-6)


def test_a_skip_spares_the_vocoder(codec, long_codes):
    with codec.tap("decoder.samples") as taps:
        codec.stream().skip(long_codes)
    assert taps["decoder.samples"].shape[-1] == 10 * FRAME  # those that it still sees


@pytest.mark.parametrize("samples", [1, 1919, 1920, 1921, 30_001, 25 * FRAME, 25 * FRAME + 1, 130_000])
def test_codes_are_the_vendors_and_a_frame_is_1920_samples(codec, vendor, samples):
    expected = vendor.encode(clip(samples), sr=24_000).audio_codes[0].numpy().T
    found = codec.encode(Audio(clip(samples), 24_000))
    assert found.dtype == np.int32 and found.shape == (16, -(-samples // FRAME))
    np.testing.assert_array_equal(found, expected)


def test_the_encoders_window_is_applied_as_in_transformers_5(codec, vendor):
    from vendor_qwen_tts import full_attention_encoder

    audio = clip(60_000)
    with full_attention_encoder():  # what transformers 4.57.3 did, and what agrees while the window is not full
        unlimited = vendor.encode(audio, sr=24_000).audio_codes[0].numpy().T
    found = codec.encode(Audio(audio, 24_000))
    np.testing.assert_array_equal(found[:, :5], unlimited[:, :5])  # 10 positions
    assert (found == unlimited).mean() < 0.9


def test_other_rates_are_resampled(codec):
    audio = Audio(clip(48_000), 24_000)
    slower = audio.resample(16_000)
    np.testing.assert_array_equal(codec.encode(slower), codec.encode(slower.resample(24_000)))


def test_bfloat16_keeps_the_codes_and_nearly_the_samples(codec_folder, long_codes, long_samples):
    for name in ("torch", "mlx"):
        narrow = model.load(codec_folder, open_backend(name, "bfloat16"))
        error = narrow.decode(long_codes[:, :20]).samples - long_samples[: 20 * FRAME]
        assert 20 * np.log10(long_samples.std() / error.std()) > 30, name
        full = model.load(codec_folder, open_backend(name))
        np.testing.assert_array_equal(*(c.encode(Audio(clip(9000), 24_000)) for c in (narrow, full)))
        assert narrow.nbytes < full.nbytes


def test_taps_have_the_same_names_and_values_on_both_backends(codec_folder):
    seen = []
    for name in ("torch", "mlx"):
        codec = model.load(codec_folder, open_backend(name))
        with codec.tap("*") as taps:
            codec.decode(codes_of(9))
            codec.encode(Audio(clip(9000), 24_000))
        seen.append(taps)
    assert list(seen[0]) == list(seen[1])
    assert {"decoder.layers.1", "decoder.stages.3", "decoder.samples", "encoder.layers.0", "encoder.latent"} <= set(
        seen[0]
    )
    for name, value in seen[0].items():
        np.testing.assert_allclose(value, seen[1][name], atol=2e-5, err_msg=name)


def test_a_tap_replaces_what_follows_from_it(codec):
    plain = codec.decode(codes_of(5)).samples
    with codec.tap("decoder.transformer", replace=lambda name, value: np.zeros_like(value)):
        without = codec.decode(codes_of(5)).samples
    assert np.abs(plain - without).max() > 1e-3


@pytest.mark.parametrize(
    ("codes", "said"),
    [
        (codes_of(4)[:15], r"codes \[16, F\].*got \[15, 4\]"),
        (codes_of(4).T, r"got \[4, 16\].*codes\.T"),
        (codes_of(4)[None], r"got \[1, 16, 4\]"),
        (codes_of(4).astype(np.float32), "whole numbers, got float32"),
        (codes_of(4) > 3, "whole numbers, got bool"),
        (np.where(np.eye(16, 4, k=-2), CODEBOOK_SIZE, codes_of(4)), "Code 64 of codebook 2 in frame 0.*0 to 63"),
        (np.where(np.eye(16, 4), -1, codes_of(4)), "Code -1 of codebook 0"),
        (codes_of(0), "no frames"),
    ],
)
def test_wrong_codes_are_refused_and_leave_the_stream_as_it_was(codec, codes, said):
    with pytest.raises(InvalidInputError, match=said):
        codec.decode(codes)
    if codes.size:
        stream = codec.stream()
        first = stream.push(codes_of(3))
        with pytest.raises(InvalidInputError):
            stream.push(codes)
        again = codec.decode(np.concatenate([codes_of(3), codes_of(2, seed=1)], axis=1)).samples
        np.testing.assert_allclose(np.concatenate([first, stream.push(codes_of(2, seed=1))]), again, atol=1e-6)


def test_audio_that_cannot_be_encoded_is_refused(codec):
    with pytest.raises(AudioError, match="empty"):
        codec.encode(Audio(np.zeros(0, np.float32), 24_000))
    with pytest.raises(AudioError, match="NaN or infinite"):
        codec.encode(Audio(np.asarray([0.0, np.nan], np.float32), 24_000))


def test_work_can_be_cancelled(codec):
    token = CancelToken()
    token.cancel()
    for work in (
        lambda: codec.decode(codes_of(20), cancel=token),
        lambda: codec.stream().skip(codes_of(20), cancel=token),
        lambda: codec.encode(Audio(clip(9), 24_000), cancel=token),
    ):
        with pytest.raises(Cancelled):
            work()


def test_a_closed_codec_says_so(codec_folder: Path):
    codec: Codec12Hz = model.load(codec_folder, open_backend("torch"))
    assert codec.nbytes > 0
    codec.close()
    with pytest.raises(InvalidInputError, match="closed"):
        codec.decode(codes_of(2))
    assert codec.nbytes == 0
