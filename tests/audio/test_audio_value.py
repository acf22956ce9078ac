"""The Audio value: construction, slicing, joining, resampling, looks."""

import base64
import io
import math
import os
import re
import struct
import threading
import zlib

import numpy as np
import pytest

from izwi_lab.audio import Audio
from izwi_lab.errors import AudioError

RATE = 16000


def tone(hz, seconds=1.0, rate=RATE, level=0.5):
    return Audio((level * np.sin(2 * np.pi * hz * np.arange(round(seconds * rate)) / rate)).astype(np.float32), rate)


def test_from_samples_scales_integers():
    assert Audio.from_samples(np.array([0, 16384, -32768], np.int16), RATE).samples.tolist() == [0, 0.5, -1]
    assert Audio.from_samples(np.array([0, 2**30, -(2**31)], np.int32), RATE).samples.tolist() == [0, 0.5, -1]
    assert Audio.from_samples(np.array([128, 192, 0], np.uint8), RATE).samples.tolist() == [0, 0.5, -1]
    assert Audio.from_samples([0.0, 0.25], RATE).samples.dtype == np.float32


def test_from_samples_averages_channels():
    stereo = np.array([[0.2, 0.4], [1.0, -1.0]])
    np.testing.assert_allclose(Audio.from_samples(stereo, RATE).samples, [0.3, 0.0], atol=1e-7)


@pytest.mark.parametrize(
    ("samples", "message"),
    [
        (np.zeros(0), "no samples"),
        (np.zeros((0, 2)), "no samples"),
        (np.zeros((2, 16000)), "Transpose"),
        (np.zeros((2, 2, 2)), r"\[S\] or \[S, C\]"),
        (np.float32(1), r"\[S\] or \[S, C\]"),
        (np.array([0, np.nan]), "NaN or infinite"),
        (np.array([0, np.inf]), "NaN or infinite"),
        (np.array([0, 1e300]), "NaN or infinite"),
        (np.array(["a"]), "float or signed integer"),
        (np.array([1 + 1j]), "float or signed integer"),
    ],
)
def test_from_samples_refuses(samples, message):
    with pytest.raises(AudioError, match=message):
        Audio.from_samples(samples, RATE)


@pytest.mark.parametrize(
    ("samples", "rate_hz"),
    [
        (np.zeros(4, np.int16), RATE),
        (np.zeros((4, 1), np.float32), RATE),
        (np.zeros(4, np.float32), 0),
        (np.zeros(4, np.float32), -1),
        (np.zeros(4, np.float32), 16000.5),
    ],
)
def test_constructor_refuses(samples, rate_hz):
    with pytest.raises(AudioError):
        Audio(samples, rate_hz)


def test_between_and_concat_are_inverse():
    clip = tone(440)
    parts = [clip.between(0, 0.3), clip.between(0.3, 0.7), clip.between(0.7)]
    assert [p.duration_s for p in parts] == pytest.approx([0.3, 0.4, 0.3])
    assert Audio.concat(parts) == clip
    assert clip.between(0.9, 5.0).duration_s == pytest.approx(0.1)
    assert len(clip.between(7.0, 9.0)) == 0
    for start, end in ((-1, 1), (0.5, 0.4), (float("nan"), 1)):
        with pytest.raises(AudioError, match="start_s <= end_s"):
            clip.between(start, end)


def test_concat_refuses_mixed_rates_and_nothing():
    with pytest.raises(AudioError, match="resample"):
        Audio.concat([tone(440), tone(440, rate=8000)])
    with pytest.raises(AudioError, match="0 clips"):
        Audio.concat([])


def test_silence():
    clip = Audio.silence(0.5, RATE)
    assert len(clip) == 8000 and clip.peak == 0 and clip.peak_dbfs == -np.inf
    with pytest.raises(AudioError):
        Audio.silence(-1, RATE)


def test_equality_and_hash():
    assert tone(440) == tone(440)
    assert hash(tone(440)) == hash(tone(440))
    assert tone(440) != tone(441)
    assert tone(440) != Audio(tone(440).samples, 8000)
    assert tone(440) != "a string"


def band_db(clip, low_hz, high_hz):
    spectrum = np.abs(np.fft.rfft(clip.samples * np.hanning(len(clip)))) ** 2
    hz = np.fft.rfftfreq(len(clip), 1 / clip.rate_hz)
    return 10 * np.log10(spectrum[(hz >= low_hz) & (hz < high_hz)].sum() + 1e-20)


@pytest.mark.parametrize("rate", [8000, 11025, 22050, 24000, 44100, 48000])
def test_resample_keeps_a_tone_and_its_place(rate):
    clip = tone(1000, rate=rate)
    out = clip.resample(RATE)
    assert out.rate_hz == RATE and len(out) == pytest.approx(RATE, abs=1)
    middle = slice(RATE // 4, 3 * RATE // 4)
    np.testing.assert_allclose(out.samples[: len(tone(1000))][middle], tone(1000).samples[middle], atol=2e-3)


def test_resample_leaves_no_alias():
    clip = tone(15000, rate=48000)  # above the new Nyquist frequency of 8 kHz: folds to 1 kHz without a filter
    out = clip.resample(RATE).between(0.1, 0.9)
    assert band_db(out, 0, 8000) - band_db(tone(1000).between(0.1, 0.9), 0, 8000) < -90


def test_resample_edges():
    clip = tone(440)
    assert clip.resample(RATE) is clip
    assert len(Audio(np.zeros(0, np.float32), RATE).resample(8000)) == 0
    assert len(Audio(np.ones(1, np.float32), RATE).resample(48000)) >= 1
    for bad in (0, -8000, 0.5):
        with pytest.raises(AudioError):
            clip.resample(bad)


def test_loudness_facts():
    assert tone(440, level=0.5).peak_dbfs == pytest.approx(-6.02, abs=0.01)
    loud = Audio(np.array([1.0, -1.5, 0.2], np.float32), RATE)
    assert loud.clipped == 2
    assert "CLIPPED (2 samples" in repr(loud)
    assert repr(tone(440)) == "Audio(1.00 s, 16 kHz, peak -6.0 dBFS)"


# --- looks ---------------------------------------------------------------------------------------------------------


def data_uris(html, mime):
    return [base64.b64decode(m) for m in re.findall(rf'src="data:{mime};base64,([^"]+)"', html)]


def decode_png(body):
    """A PNG of 8-bit RGBA without filters to [height, width, 4]."""
    assert body.startswith(b"\x89PNG\r\n\x1a\n")
    width, height = struct.unpack(">II", body[16:24])
    at, packed = 8, b""
    while at < len(body):
        size, kind = struct.unpack(">I4s", body[at : at + 8])
        content = body[at + 8 : at + 8 + size]
        assert struct.unpack(">I", body[at + 8 + size : at + 12 + size])[0] == zlib.crc32(kind + content)
        packed += content if kind == b"IDAT" else b""
        at += 12 + size
    rows = np.frombuffer(zlib.decompress(packed), np.uint8).reshape(height, 1 + 4 * width)
    assert not rows[:, 0].any()
    return rows[:, 1:].reshape(height, width, 4)


def test_html_holds_waveform_sound_and_facts():
    html = Audio.concat([tone(440), Audio.silence(1, RATE)])._repr_html_()
    (picture,), (sound,) = data_uris(html, "image/png"), data_uris(html, "audio/mpeg")
    ink = decode_png(picture)[:, :, 3] > 0
    heights = ink.sum(axis=0)
    assert (heights[:290] > 20).all() and (heights[310:] <= 2).all() and (heights > 0).all()
    assert Audio.open(sound).duration_s == pytest.approx(2.0, abs=0.1)
    assert "2.00 s, 16 kHz, peak -6.0 dBFS" in html
    assert "<source" not in html and "<svg" not in html and "var(" not in html and "<script" not in html


def test_long_clips_are_not_embedded_unless_asked():
    clip = Audio.silence(121, 8000)
    assert "<audio" not in clip._repr_html_() and ".play(embed=True)" in clip._repr_html_()
    assert "<audio" in clip.play(embed=True)._repr_html_()
    assert "<audio" not in tone(440).play(embed=False)._repr_html_()
    assert "1.00 s" in repr(tone(440).play())
    assert len(clip._repr_html_()) < 5000


def test_html_without_an_encoder_embeds_wav(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "av", None)
    (sound,) = data_uris(tone(440)._repr_html_(), "audio/wav")
    assert Audio.open(sound).duration_s == 1.0


def test_empty_clip_has_a_picture_too():
    assert "image/png" in Audio(np.zeros(0, np.float32), RATE).play(embed=False)._repr_html_()


# --- sources -------------------------------------------------------------------------------------------------------


def test_sources_agree(tmp_path):
    clip = tone(440)
    body = clip.encode("wav")
    path = tmp_path / "clip.wav"
    path.write_bytes(body)
    with path.open("rb") as file:
        opened = [Audio.open(s) for s in (path, str(path), body, bytearray(body), memoryview(body), file)]
    assert all(o == opened[0] for o in opened)
    np.testing.assert_allclose(opened[0].samples, clip.samples, atol=2e-5)


def test_name_is_not_trusted(tmp_path):
    path = tmp_path / "really_flac.mp3"
    path.write_bytes(tone(440).encode("flac"))
    assert Audio.open(path).duration_s == 1.0


def test_fifo(tmp_path):
    fifo = tmp_path / "pipe"
    os.mkfifo(fifo)
    writer = threading.Thread(target=lambda: fifo.write_bytes(tone(440).encode("wav")))
    writer.start()
    assert Audio.open(fifo).duration_s == 1.0
    writer.join()


def test_unreadable_sources(tmp_path):
    with pytest.raises(AudioError, match="no file"):
        Audio.open(tmp_path / "missing.wav")
    with pytest.raises(AudioError, match="is a folder"):
        Audio.open(tmp_path)
    empty = tmp_path / "empty.wav"
    empty.touch()
    with pytest.raises(AudioError, match="is empty"):
        Audio.open(empty)
    text = tmp_path / "notes.wav"
    text.write_text("Dear diary, this is no sound.\n" * 50, encoding="utf-8")
    with pytest.raises(AudioError, match=r"notes\.wav' is a text file, not audio: it starts with 'Dear diary"):
        Audio.open(text)
    with pytest.raises(AudioError, match="no audio format that can be read"):
        Audio.open(b"\x7fELF\x00\x01\x02" + bytes(100))


def test_playlists_are_not_followed(tmp_path):
    secret = tmp_path / "secret.wav"
    secret.write_bytes(tone(440).encode("wav"))
    for text in (f"#EXTM3U\n#EXTINF:1,\n{secret}\n", f"ffconcat version 1.0\nfile {secret}\n"):
        with pytest.raises(AudioError, match="text file"):
            Audio.open(text.encode())


def test_file_object_is_read_from_where_it_stands():
    file = io.BytesIO(b"prefix" + tone(440).encode("wav"))
    file.seek(6)
    assert Audio.open(file).duration_s == 1.0


@pytest.mark.parametrize("rate_hz", ["16000", None, math.nan, math.inf, 0, -8000, 16000.5])
def test_a_rate_is_a_positive_whole_number(rate_hz):
    for make in (Audio, Audio.from_samples):
        with pytest.raises(AudioError, match="rate_hz expects"):
            make(np.zeros(4, np.float32), rate_hz)
    with pytest.raises(AudioError, match="rate_hz expects"):
        tone(440).resample(rate_hz)
    with pytest.raises(AudioError, match="rate_hz expects"):
        Audio.silence(1.0, rate_hz)


@pytest.mark.parametrize("seconds", [math.inf, math.nan, 1e15, -1])
def test_silence_has_an_end(seconds):
    with pytest.raises(AudioError, match="seconds"):
        Audio.silence(seconds, RATE)


def test_between_takes_an_open_end():
    clip = tone(440, 0.5)
    assert clip.between(0.25, math.inf) == clip.between(0.25)
    assert len(clip.between(math.inf, math.inf)) == 0


def test_lists_of_unequal_length_are_no_audio():
    with pytest.raises(AudioError, match="expects an array"):
        Audio.from_samples([[0.1, 0.2], [0.3]], RATE)


@pytest.mark.parametrize("source", [None, 5, [0.0], np.zeros(5)])
def test_open_says_what_it_takes(source):
    with pytest.raises(AudioError, match="expects a path, bytes or an open binary file"):
        Audio.open(source)


def test_open_refuses_a_file_opened_as_text():
    with pytest.raises(AudioError, match="open as text"):
        Audio.open(io.StringIO("RIFF"))


@pytest.mark.parametrize("name", ["x" * 5000, "~no-such-user-here/a.wav", "a\0b.wav"])
def test_impossible_file_names_are_plain_errors(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(AudioError):
        Audio.open(name)
    with pytest.raises(AudioError, match="Cannot write"):
        tone(440).save(name if name.endswith(".wav") else f"{name}.wav")
    assert not list(tmp_path.iterdir())


def test_samples_that_are_no_numbers_are_never_called_silent():
    broken = Audio(np.array([np.nan, 1.0], np.float32), RATE)
    assert "NaN" in repr(broken) and "silent" not in repr(broken)
    page = broken._repr_html_()
    assert "NaN" in page and "<audio" not in page


def test_an_empty_clip_shows_itself_without_a_player():
    page = Audio(np.zeros(0, np.float32), RATE)._repr_html_()
    assert "0.00 s" in page and "<audio" not in page
