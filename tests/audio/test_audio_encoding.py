"""Encoding to every format, whole and in pieces, and reading it back."""

import io
import struct
import sys
import wave

import numpy as np
import pytest
from audio_clips import DECODABLE, LOSSLESS, LOSSY, aligned_snr_db, speechlike

from izwi_lab.audio import Audio
from izwi_lab.audio_encoding import FORMATS, Drain, Encoder, format_name, format_of
from izwi_lab.errors import AudioError, MissingExtraError


@pytest.mark.parametrize("rate", [8000, 16000, 22050, 24000, 44100, 48000])
@pytest.mark.parametrize("name", DECODABLE)
def test_round_trip(name, rate):
    clip = speechlike(rate=rate)
    decoded = Audio.open(clip.encode(name))
    assert decoded.duration_s == pytest.approx(clip.duration_s, abs=1e-6 if name in LOSSLESS else 0.15)
    snr_db, delay_s = aligned_snr_db(clip, decoded)
    # lossless here means 16 bits; opus does not aim at the waveform, hence the low bar
    assert snr_db > {"wav": 70, "flac": 70, "opus": 8}.get(name, 18)
    assert abs(delay_s) < (1e-6 if name in LOSSLESS else 0.07)


def test_odd_rate_goes_to_the_next_one_the_codec_has():
    clip = speechlike(rate=12345)
    assert Audio.open(clip.encode("flac")).rate_hz == 12345
    for name in ("mp3", "aac", "m4a"):
        assert Audio.open(clip.encode(name)).rate_hz == 16000
    assert aligned_snr_db(clip, Audio.open(clip.encode("mp3")))[0] > 15


def test_wav_is_what_other_readers_expect():
    clip = speechlike()
    with wave.open(io.BytesIO(clip.encode("wav"))) as reader:
        assert (reader.getnchannels(), reader.getsampwidth(), reader.getframerate()) == (1, 2, 24000)
        assert reader.getnframes() == len(clip)
        heard = np.frombuffer(reader.readframes(len(clip)), "<i2")
    np.testing.assert_allclose(heard / 32768, clip.samples, atol=2e-5)


def test_float_wav_is_exact():
    clip = Audio(speechlike().samples * 3, 24000)
    decoded = Audio.open(clip.encode("wav", float32=True))
    assert decoded == clip
    assert clip.encode("pcm", float32=True) == clip.samples.tobytes()


def test_pcm_has_no_header():
    clip = Audio(np.array([0, 0.5, -1], np.float32), 24000)
    assert clip.encode("pcm") == struct.pack("<3h", 0, 16384, -32768)


def test_over_full_scale_is_limited_and_counted():
    clip = Audio(np.array([1.5, -2.0, 1.0, -1.0, 0.25], np.float32), 24000)
    sink = io.BytesIO()
    with Encoder(sink, "pcm", 24000) as encoder:
        encoder.write(clip)
    assert np.frombuffer(sink.getvalue(), "<i2").tolist() == [32767, -32768, 32767, -32768, 8192]
    assert encoder.clipped == 2
    for name in ("flac", "mp3", "opus", "aac"):
        loud = Audio(np.sign(np.sin(np.arange(48000) / 20)).astype(np.float32) * 4, 24000)
        with Encoder(io.BytesIO(), name, 24000) as encoder:
            encoder.write(loud)
        assert encoder.clipped == np.count_nonzero(np.abs(loud.samples) > 1)


def test_bitrate_changes_the_size():
    clip = speechlike()
    assert len(clip.encode("mp3", bitrate=128_000)) > 1.5 * len(clip.encode("mp3", bitrate=48_000))
    for name, options in (("flac", {"bitrate": 1}), ("wav", {"bitrate": 1}), ("mp3", {"float32": True})):
        with pytest.raises(AudioError):
            clip.encode(name, **options)


@pytest.mark.parametrize("name", FORMATS)
def test_very_short_clips_encode(name):
    for length in (1, 100):
        body = Audio(np.full(length, 0.1, np.float32), 24000).encode(name)
        if name != "pcm" and length >= (100 if name == "m4a" else 1):  # FFmpeg's edit list drops a lone sample
            assert len(Audio.open(body)) >= length


@pytest.mark.parametrize("name", FORMATS)
def test_an_empty_clip_is_a_valid_file_or_an_error(name, tmp_path):
    empty = Audio(np.zeros(0, np.float32), 24000)
    if name in ("wav", "pcm", "flac"):
        body = empty.encode(name)
        assert name == "pcm" or body[:4] in (b"RIFF", b"fLaC")
        return
    with pytest.raises(AudioError, match="no samples"):  # FFmpeg would write a file of 0 bytes
        empty.save(tmp_path / f"a.{name}")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("bitrate", [0, -5, 1, 1.5, 10**12, "64k"])
@pytest.mark.parametrize("name", ["mp3", "opus"])
def test_a_bitrate_no_codec_takes_is_refused(name, bitrate):
    with pytest.raises(AudioError, match="bits per second"):
        speechlike().encode(name, bitrate=bitrate)


# --- in pieces -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("pieces", [1, 7, 40])
@pytest.mark.parametrize("name", FORMATS)
def test_pieces_to_a_file_are_the_whole(name, pieces):
    clip = speechlike()
    sink = io.BytesIO()
    with Encoder(sink, name, clip.rate_hz) as encoder:
        for part in np.array_split(clip.samples, pieces):
            encoder.write(Audio(part, clip.rate_hz))
    if name == "opus":  # the Ogg stream carries a random serial number
        assert Audio.open(sink.getvalue()) == Audio.open(clip.encode(name))
    else:
        assert sink.getvalue() == clip.encode(name)


@pytest.mark.parametrize("name", DECODABLE)
def test_pieces_to_a_pipe_flow_and_decode(name):
    clip = speechlike()
    drain, sizes, body = Drain(), [], b""
    encoder = Encoder(drain, name, clip.rate_hz)
    for part in np.array_split(clip.samples, 10):  # 0.2 s each
        encoder.write(Audio(part, clip.rate_hz))
        sizes.append(len(piece := drain.take()))
        body += piece
    encoder.close()
    body += drain.take()
    assert drain.take() == b""
    assert sum(size > 0 for size in sizes) >= 8, "bytes must leave while the audio is being made"
    decoded = Audio.open(body)
    assert decoded.duration_s == pytest.approx(clip.duration_s, abs=0.12)
    assert aligned_snr_db(clip, decoded)[0] > {"wav": 70, "flac": 70, "opus": 8}.get(name, 18)


def test_resampled_pieces_have_no_seams():
    clip = speechlike(rate=22050)
    sink = io.BytesIO()
    with Encoder(sink, "opus", 22050) as encoder:
        for part in np.array_split(clip.samples, 33):
            encoder.write(Audio(part, 22050))
    whole = Audio.open(clip.encode("opus"))
    pieces = Audio.open(sink.getvalue())
    assert len(whole) == pytest.approx(len(pieces), abs=960)
    count = min(len(whole), len(pieces))
    assert np.abs(whole.samples[:count] - pieces.samples[:count]).max() < 0.02


def test_wav_stream_has_one_header_and_open_sizes_until_closed():
    drain = Drain()
    encoder = Encoder(drain, "wav", 24000)
    encoder.write(speechlike(0.5))
    body = drain.take()
    assert body.count(b"RIFF") == 1 and struct.unpack("<I", body[40:44])[0] == 0xFFFFFFFF
    encoder.write(speechlike(0.5))
    encoder.close()
    assert b"RIFF" not in (rest := drain.take())
    assert Audio.open(body + rest).duration_s == 1.0


def test_encoder_starts_where_the_file_stands_and_leaves_it_open():
    sink = io.BytesIO(b"12345")
    sink.seek(5)
    with Encoder(sink, "wav", 24000) as encoder:
        encoder.write(speechlike(0.5))
    encoder.close()
    assert sink.getvalue()[:5] == b"12345" and sink.tell() == 5 + 44 + 24000
    assert Audio.open(sink.getvalue()[5:]).duration_s == 0.5


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_encoder_refuses_what_is_no_number(name, value):
    clip = Audio(np.array([0.0, value], np.float32), 24000)
    with pytest.raises(AudioError, match="NaN or infinite"):
        clip.encode(name)


def test_encoder_refuses_another_rate():
    with pytest.raises(AudioError, match="takes 24000 Hz, the piece has 16000"):
        Encoder(io.BytesIO(), "wav", 24000).write(speechlike(rate=16000))


# --- files ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("suffix", "head"), [
    ("wav", b"RIFF"), ("flac", b"fLaC"), ("mp3", b"ID3"), ("opus", b"OggS"), ("ogg", b"OggS"), ("aac", b"\xff\xf1"),
])  # fmt: skip
def test_save_takes_the_format_from_the_suffix(tmp_path, suffix, head):
    path = speechlike(0.2).save(tmp_path / f"clip.{suffix.upper()}")
    assert path.read_bytes().startswith(head)
    assert [p.name for p in tmp_path.iterdir()] == [path.name]


def test_save_failures_leave_nothing(tmp_path):
    clip = speechlike(0.2)
    with pytest.raises(AudioError, match="no suffix"):
        clip.save(tmp_path / "clip")
    with pytest.raises(AudioError, match=r"'\.xyz'.*wav, pcm, flac"):
        clip.save(tmp_path / "clip.xyz")
    with pytest.raises(AudioError, match="Cannot write"):
        clip.save(tmp_path / "missing" / "clip.wav")
    assert clip.save(tmp_path / "named", "flac").read_bytes().startswith(b"fLaC")
    assert [p.name for p in tmp_path.iterdir()] == ["named"]


def test_names():
    assert [format_name(n) for n in ("WAV", ".ogg", "oga", "raw", "mp4")] == ["wav", "opus", "opus", "pcm", "m4a"]
    assert format_of("a/b.c/d.FLAC") == "flac"


@pytest.mark.parametrize("name", [*LOSSY, "flac"])
def test_without_pyav_the_error_names_the_extra(monkeypatch, name):
    body = speechlike(0.2).encode(name)
    monkeypatch.setitem(sys.modules, "av", None)
    for act in (lambda: Audio.open(body), lambda: speechlike(0.2).encode(name)):
        with pytest.raises(MissingExtraError, match=r"pip install 'izwi-lab\[audio\]'"):
            act()


def test_without_soxr_the_error_names_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "soxr", None)
    with pytest.raises(MissingExtraError, match=r"pip install 'izwi-lab\[audio\]'"):
        speechlike().resample(16000)
