"""Decoding of other containers, and of cut and corrupt files."""

import contextlib
import io

import numpy as np
import pytest
from audio_clips import DECODABLE, LOSSY, aligned_snr_db, speechlike

from izwi_lab.audio import Audio
from izwi_lab.audio_encoding import Drain
from izwi_lab.audio_formats import sniff
from izwi_lab.errors import AudioError


def through_av(clip, container, codec, layout="mono"):
    """Encode by FFmpeg's names what izwi_lab itself does not write."""
    import av

    sink = io.BytesIO()
    with av.open(sink, "w", format=container) as out:
        stream = out.add_stream(codec, rate=clip.rate_hz, layout=layout)
        channels = 2 if layout == "stereo" else 1
        pcm = np.repeat((clip.samples * 32767).astype(np.int16), channels)[None, :]
        frame = av.AudioFrame.from_ndarray(pcm, format="s16", layout=layout)
        frame.sample_rate = clip.rate_hz
        for packet in [*stream.encode(frame), *stream.encode(None)]:
            out.mux(packet)
    return sink.getvalue()


@pytest.mark.parametrize(
    ("container", "codec", "layout"),
    [
        ("webm", "libopus", "mono"),
        ("webm", "libopus", "stereo"),
        ("matroska", "aac", "mono"),
        ("mp4", "aac", "stereo"),
        ("aiff", "pcm_s16be", "mono"),
        ("caf", "pcm_s16le", "stereo"),
        ("flac", "flac", "stereo"),
        ("mp3", "libmp3lame", "stereo"),
        ("wav", "pcm_s24le", "stereo"),
        ("wav", "adpcm_ms", "mono"),
    ],
)
def test_containers(container, codec, layout):
    clip = speechlike(rate=48000)
    decoded = Audio.open(through_av(clip, container, codec, layout))
    assert decoded.duration_s == pytest.approx(2.0, abs=0.12)
    assert aligned_snr_db(clip, decoded)[0] > 8


def test_vorbis():
    import av

    clip, sink = speechlike(rate=48000), io.BytesIO()
    with av.open(sink, "w", format="ogg") as out:
        stream = out.add_stream("vorbis", rate=48000, layout="stereo", options={"strict": "-2"})
        frame = av.AudioFrame.from_ndarray(np.stack([clip.samples] * 2), format="fltp", layout="stereo")
        frame.sample_rate = 48000
        for packet in [*stream.encode(frame), *stream.encode(None)]:
            out.mux(packet)
    assert aligned_snr_db(clip, Audio.open(sink.getvalue()))[0] > 15


@pytest.mark.parametrize("name", LOSSY)
def test_duration_cap_is_enforced_while_decoding(name):
    with pytest.raises(AudioError, match=r"more than the cap of 1 s"):
        Audio.open(speechlike(3.0).encode(name), max_s=1.0)


@pytest.mark.parametrize("keep", [0.3, 0.6, 0.9])
@pytest.mark.parametrize("name", ["flac", "mp3", "opus", "m4a"])
def test_cut_files_are_refused(name, keep):
    body = speechlike(4.0).encode(name)
    with pytest.raises(AudioError, match=r"damaged|cannot be opened") as caught:
        Audio.open(body[: int(len(body) * keep)])
    assert caught.value.hint


def test_cut_flac_can_be_used_when_asked():
    body = speechlike(4.0).encode("flac")
    kept = Audio.open(body[: len(body) // 2], allow_damaged=True)
    assert 0.5 < kept.duration_s < 3.5


def test_cut_webm_is_refused():
    body = through_av(speechlike(4.0, rate=48000), "webm", "libopus")
    with pytest.raises(AudioError, match="damaged"):
        Audio.open(body[: len(body) // 2])


@pytest.mark.parametrize("name", DECODABLE)
def test_header_alone_is_refused(name):
    body = speechlike(1.0).encode(name)
    for length in (5, 20, 60):
        with pytest.raises(AudioError):
            Audio.open(body[:length])


def test_corrupt_flac_is_refused():
    body = bytearray(speechlike(4.0).encode("flac"))
    body[len(body) // 2 : len(body) // 2 + 400] = bytes(400)
    with pytest.raises(AudioError, match="damaged"):
        Audio.open(bytes(body))
    assert Audio.open(bytes(body), allow_damaged=True).duration_s > 3


def test_one_flipped_bit_in_flac_is_found():
    body = bytearray(speechlike(4.0).encode("flac"))
    body[len(body) // 2] ^= 4
    with pytest.raises(AudioError, match="damaged"):
        Audio.open(bytes(body))


@pytest.mark.parametrize("name", DECODABLE)
def test_random_damage_never_escapes_as_another_error(name):
    body = speechlike(0.5).encode(name)
    rng = np.random.default_rng(7)
    for _ in range(60):
        broken = bytearray(body)
        for at in rng.integers(0, len(body), 8):
            broken[at] = rng.integers(256)
        with contextlib.suppress(AudioError):
            assert np.isfinite(Audio.open(bytes(broken), max_s=60).samples).all()


def test_film_without_sound_is_named():
    import av

    sink = io.BytesIO()
    with av.open(sink, "w", format="mp4") as out:
        stream = out.add_stream("mpeg4", rate=10)
        stream.width = stream.height = 16
        frame = av.VideoFrame.from_ndarray(np.zeros((16, 16, 3), np.uint8), format="rgb24")
        for packet in [*stream.encode(frame), *stream.encode(None)]:
            out.mux(packet)
    with pytest.raises(AudioError, match="no audio track"):
        Audio.open(sink.getvalue())


def test_sniff():
    assert sniff(b"RIFF\0\0\0\0WAVEfmt ") == "wav"
    assert sniff(b"RIFF\0\0\0\0AVI LIST") is None
    assert sniff(b"ID3\x04\0\0\0\0\0\0" + b"fLaC") == "flac"
    assert sniff(b"ID3\x04\0\0\0\0\0\0" + b"\xff\xfb\x90\0") == "mp3"
    assert sniff(b"\xff\xf1\x50\x80") == "aac"
    assert sniff(b"\xff\xfe\0\0") is None  # a UTF-16 text mark, no frame sync of layer III
    assert sniff(b"") is None


@pytest.mark.parametrize("container", ["webm", "matroska", "ogg", "mp4"])
def test_recordings_written_as_a_stream(container):
    """What a browser's MediaRecorder makes: no duration, no index, sizes left open."""
    import av

    clip, drain = speechlike(rate=48000), Drain()
    options = {"movflags": "empty_moov+default_base_moof", "frag_duration": "200000"} if container == "mp4" else {}
    with av.open(drain, "w", format=container, options=options) as out:
        stream = out.add_stream("libopus", rate=48000, layout="mono")
        frame = av.AudioFrame.from_ndarray(clip.samples[None, :], format="flt", layout="mono")
        frame.sample_rate = 48000
        for packet in [*stream.encode(frame), *stream.encode(None)]:
            out.mux(packet)
    decoded = Audio.open(drain.take())
    assert decoded.duration_s == pytest.approx(2.0, abs=0.1)
    assert aligned_snr_db(clip, decoded)[0] > 8
