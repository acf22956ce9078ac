"""Reference audio: every format, the checks and their messages, audio and transcript in step."""

from __future__ import annotations

import io

import numpy as np
import pytest

from izwi_lab.audio import Audio
from izwi_lab.errors import AudioError, InvalidInputError
from izwi_lab.families.qwen3_tts.reference import MAX_S, MIN_S, reference


def clip(seconds: float, rate_hz: int = 24_000, level: float = 0.2) -> Audio:
    n = np.arange(round(seconds * rate_hz))
    return Audio((level * np.sin(2 * np.pi * 220 * n / rate_hz)).astype(np.float32), rate_hz)


def test_at_24_khz_nothing_is_changed():
    heard = reference(clip(2.0), " Hello there. ")
    assert np.array_equal(heard.audio.samples, clip(2.0).samples)
    assert heard.transcript == "Hello there." and heard.notes == ()
    assert heard.mel(128).shape == (1, 48_000 // 256, 128) and heard.mel(128).dtype == np.float32


@pytest.mark.parametrize("rate_hz", [8_000, 16_000, 44_100, 48_000])
def test_other_rates_become_24_khz(rate_hz):
    heard = reference(clip(1.5, rate_hz))
    assert heard.audio.rate_hz == 24_000 and heard.audio.duration_s == pytest.approx(1.5, abs=1e-3)
    middle = slice(6_000, 30_000)
    np.testing.assert_allclose(heard.audio.samples[middle], clip(1.5).samples[middle], atol=2e-3)


@pytest.mark.parametrize("format", ["wav", "flac", "mp3", "opus", "m4a"])
def test_common_formats(tmp_path, format):
    path = clip(2.0).save(tmp_path / f"voice.{format}")
    for source in (path, str(path), path.read_bytes(), io.BytesIO(path.read_bytes())):
        heard = reference(source)
        assert heard.audio.rate_hz == 24_000 and heard.audio.duration_s == pytest.approx(2.0, abs=0.1)


@pytest.mark.parametrize(
    ("audio", "message"),
    [
        (clip(MIN_S - 0.01), "0.49 s; at least 0.5 s"),
        (Audio(np.zeros(0, np.float32), 24_000), "0.00 s"),
        (Audio.silence(3.0, 24_000), "silent"),
        (clip(3.0, level=1e-4), "silent"),
        (Audio(np.full(48_000, 0.5, np.float32), 24_000), "silent"),  # a constant is no sound
        (Audio(np.where(np.arange(48_000) == 7, np.nan, 0.1).astype(np.float32), 24_000), "1 samples that are NaN"),
        (clip(3.0, level=0.2 * 32768), "full scale is 1"),  # integers that were never divided
        (Audio(np.where(np.arange(48_000) < 2, np.inf, 0.1).astype(np.float32), 24_000), "2 samples that are NaN"),
    ],
)
def test_audio_that_holds_no_voice_is_refused(audio, message):
    for transcript in (None, "Hello."):
        with pytest.raises(AudioError, match=message):
            reference(audio, transcript)


def test_what_is_no_audio_is_refused(tmp_path):
    for source in (b"not audio at all", tmp_path / "none.wav", 5):
        with pytest.raises(AudioError):
            reference(source)


def test_short_sound_in_a_long_silence_is_heard():
    samples = np.zeros(24_000 * 5, np.float32)
    samples[60_000:66_000] = clip(0.25).samples
    assert reference(Audio(samples, 24_000)).audio.duration_s == 5.0


def test_too_long_with_a_transcript_is_refused_with_what_is_allowed():
    assert reference(clip(MAX_S, 8_000), "Hello.").notes == ()
    with pytest.raises(AudioError, match=r"31\.0 s; with a transcript at most 30 s .*no\s+transcript"):
        reference(clip(MAX_S + 1, 8_000), "Hello.")


def test_too_long_without_a_transcript_is_cut_and_says_so():
    long = clip(MAX_S + 12, 24_000)
    heard = reference(long)
    assert heard.audio.duration_s == MAX_S and np.array_equal(heard.audio.samples, long.samples[: int(MAX_S * 24_000)])
    assert heard.notes == ("only the first 30 s of 42.0 s are used",)
    late = Audio(np.concatenate([np.zeros(24_000 * 31, np.float32), clip(2.0).samples]), 24_000)
    with pytest.raises(AudioError, match="silent"):
        reference(late)


@pytest.mark.parametrize("transcript", ["", "  \n", 5, "x" * 2001])
def test_a_transcript_that_says_nothing_or_too_much_is_refused(transcript):
    with pytest.raises(InvalidInputError, match="transcript"):
        reference(clip(2.0), transcript)


@pytest.mark.parametrize("rate_hz", [16_000, 44_100])
def test_the_samples_are_those_that_the_vendor_resamples(rate_hz):
    librosa = pytest.importorskip("librosa")
    samples = (0.1 * np.random.default_rng(0).standard_normal(rate_hz + 333)).astype(np.float32)
    expected = librosa.resample(y=samples, orig_sr=rate_hz, target_sr=24_000)
    ours = reference(Audio(samples, rate_hz)).audio.samples
    assert len(expected) - len(ours) in (0, 1)  # librosa adds a zero where the length is no whole number
    np.testing.assert_allclose(ours, expected[: len(ours)], atol=1e-6)
