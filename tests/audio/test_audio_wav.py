"""WAV is read without any decoder package: every width, every header oddity, every way to be broken."""

import io
import struct
import sys

import numpy as np
import pytest

from izwi_lab import audio_formats
from izwi_lab.audio import Audio
from izwi_lab.errors import AudioError, MissingExtraError

RATE = 16000


@pytest.fixture
def no_av(monkeypatch):
    """As on a machine without the `audio` extra."""
    monkeypatch.setitem(sys.modules, "av", None)
    monkeypatch.setitem(sys.modules, "soxr", None)


def tone(seconds=0.25, rate=RATE, hz=440.0, level=0.5):
    return (level * np.sin(2 * np.pi * hz * np.arange(round(seconds * rate)) / rate)).astype(np.float32)


def chunk(name, body, size=None):
    return name + struct.pack("<I", len(body) if size is None else size) + body + b"\0" * (len(body) % 2)


def fmt_body(kind, channels, bits, rate=RATE, extensible=False):
    block = channels * bits // 8
    body = struct.pack("<HHIIHH", 0xFFFE if extensible else kind, channels, rate, rate * block, block, bits)
    if extensible:
        guid = struct.pack("<H", kind) + bytes.fromhex("0000 0000 1000 8000 00aa00389b71".replace(" ", ""))
        body += struct.pack("<HHI", 22, bits, 0) + guid
    return body


def riff(*chunks, size=None, magic=b"RIFF"):
    body = b"WAVE" + b"".join(chunks)
    return magic + struct.pack("<I", len(body) if size is None else size) + body


def stored(samples, kind, bits):
    """float [S] or [S, C] to the bytes of a data chunk."""
    if kind == 3:
        return samples.astype("<f4" if bits == 32 else "<f8").tobytes()
    if bits == 8:
        return (np.rint(samples * 127) + 128).astype(np.uint8).tobytes()
    integers = np.clip(np.rint(samples.astype(np.float64) * 2 ** (bits - 1)), -(2 ** (bits - 1)), 2 ** (bits - 1) - 1)
    if bits == 24:
        return integers.astype("<i4").reshape(-1, 1).view(np.uint8)[:, :3].tobytes()
    return integers.astype("<i2" if bits == 16 else "<i4").tobytes()


@pytest.mark.parametrize("extensible", [False, True], ids=["plain", "extensible"])
@pytest.mark.parametrize("channels", [1, 2, 6])
@pytest.mark.parametrize(
    ("kind", "bits", "error"), [(1, 8, 9e-3), (1, 16, 2e-5), (1, 24, 1e-6), (1, 32, 1e-6), (3, 32, 0), (3, 64, 0)]
)
def test_every_width(no_av, kind, bits, error, channels, extensible):
    wave = tone()
    body = stored(np.repeat(wave[:, None], channels, 1) if channels > 1 else wave, kind, bits)
    clip = Audio.open(riff(chunk(b"fmt ", fmt_body(kind, channels, bits, extensible=extensible)), chunk(b"data", body)))
    assert clip.rate_hz == RATE
    assert clip.samples.dtype == np.float32
    assert clip.samples.shape == wave.shape
    assert np.abs(clip.samples - wave).max() <= max(error, 1e-7)


def test_channels_are_averaged(no_av):
    left, right = tone(hz=300), tone(hz=700)
    body = stored(np.stack([left, right], 1), 3, 32)
    clip = Audio.open(riff(chunk(b"fmt ", fmt_body(3, 2, 32)), chunk(b"data", body)))
    np.testing.assert_allclose(clip.samples, (left + right) / 2, atol=1e-7)


def test_other_chunks_and_odd_padding(no_av):
    wave = tone()
    data = riff(
        chunk(b"JUNK", b"odd"),
        chunk(b"fmt ", fmt_body(1, 1, 16)),
        chunk(b"LIST", b"INFOx"),
        chunk(b"data", stored(wave, 1, 16)),
        chunk(b"id3 ", b"tail that is no sound"),
    )
    assert len(Audio.open(data)) == len(wave)


@pytest.mark.parametrize(("riff_size", "data_size"), [(0xFFFFFFFF, 0xFFFFFFFF), (0, 0), (0x24, 0xFFFFFFFF)])
def test_streamed_headers_without_sizes(no_av, riff_size, data_size):
    wave = tone()
    data = riff(chunk(b"fmt ", fmt_body(1, 1, 16)), chunk(b"data", stored(wave, 1, 16), size=data_size), size=riff_size)
    assert len(Audio.open(data)) == len(wave)


def test_rf64(no_av):
    wave = tone()
    body = stored(wave, 1, 16)
    ds64 = struct.pack("<QQQI", 0, len(body), len(wave), 0)
    data = riff(
        chunk(b"ds64", ds64),
        chunk(b"fmt ", fmt_body(1, 1, 16)),
        chunk(b"data", body, size=0xFFFFFFFF),
        chunk(b"LIST", b"after"),
        size=0xFFFFFFFF,
        magic=b"RF64",
    )
    assert len(Audio.open(data)) == len(wave)


def whole(wave=None):
    return riff(chunk(b"fmt ", fmt_body(1, 1, 16)), chunk(b"data", stored(tone() if wave is None else wave, 1, 16)))


@pytest.mark.parametrize("keep", [0.1, 0.5, 0.99])
def test_cut_samples(no_av, keep):
    data = whole()
    cut = data[: int(len(data) * keep)]
    with pytest.raises(AudioError, match=r"is cut: its header promises 0\.25 s.*allow_damaged=True"):
        Audio.open(cut)
    saved = Audio.open(cut, allow_damaged=True)
    np.testing.assert_array_equal(saved.samples, Audio.open(data).samples[: len(saved)])
    assert len(saved) == (len(cut) - 44) // 2


@pytest.mark.parametrize("length", [1, 4, 11, 12, 16, 30, 40, 43])
def test_cut_header(no_av, length):
    with pytest.raises(AudioError):
        Audio.open(whole()[:length])


def test_no_samples(no_av):
    with pytest.raises(AudioError, match="holds no samples"):
        Audio.open(whole(np.zeros(0, np.float32)))


def test_one_sample(no_av):
    clip = Audio.open(whole(np.array([0.5], np.float32)))
    assert clip.samples.tolist() == [0.5]
    assert "1" in repr(clip) and "<audio" in clip._repr_html_()


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_samples_that_are_not_numbers(no_av, value):
    wave = tone()
    wave[1600] = value
    data = riff(chunk(b"fmt ", fmt_body(3, 1, 32)), chunk(b"data", stored(wave, 3, 32)))
    with pytest.raises(AudioError, match=r"1 samples that are NaN or infinite, the first at 0\.100 s"):
        Audio.open(data)


@pytest.mark.parametrize("body", [fmt_body(1, 0, 16), fmt_body(1, 1, 0), fmt_body(1, 1, 16, rate=0), b"short"])
def test_headers_without_sense(no_av, body):
    with pytest.raises(AudioError):
        Audio.open(riff(chunk(b"fmt ", body), chunk(b"data", b"\0\0" * 10)))


def test_samples_before_their_format(no_av):
    with pytest.raises(AudioError, match="'fmt '"):
        Audio.open(riff(chunk(b"data", b"\0\0" * 10)))


def test_compressed_wav_needs_pyav(no_av):
    with pytest.raises(MissingExtraError, match=r"izwi-lab\[audio\]"):
        Audio.open(riff(chunk(b"fmt ", fmt_body(6, 1, 8)), chunk(b"data", b"\x55" * 100)))


def test_a_law_through_pyav():
    clip = Audio.open(riff(chunk(b"fmt ", fmt_body(6, 1, 8, rate=8000)), chunk(b"data", b"\xd5" * 800)))
    assert clip.duration_s == pytest.approx(0.1)
    assert clip.peak < 1e-3  # 0xD5 is A-law's smallest step


def test_duration_cap_holds_before_and_while_reading(no_av):
    class Counting(io.BytesIO):
        taken = 0

        def read(self, size=-1):
            data = super().read(size)
            type(self).taken += len(data)
            return data

    header = riff(chunk(b"fmt ", fmt_body(1, 1, 16)), chunk(b"data", b"", size=2 * RATE * 100))
    with pytest.raises(AudioError, match=r"100 s long, more than the cap of 60 s.*raise max_s"):
        Audio.open(header, max_s=60)
    open_ended = riff(chunk(b"fmt ", fmt_body(1, 1, 16)), b"data" + b"\xff" * 4 + b"\0\0" * RATE * 100)
    with pytest.raises(AudioError, match="more than the cap of 1 s"):
        Audio.open(open_ended, max_s=1)


def test_byte_cap(no_av, tmp_path):
    data = whole()
    path = tmp_path / "big.wav"
    path.write_bytes(data)
    for source in (data, io.BytesIO(data), path):
        with pytest.raises(AudioError, match="more than the cap of 1,000"):
            Audio.open(source, max_bytes=1000)


def test_byte_cap_stops_an_endless_stream(no_av):
    class Endless(io.RawIOBase):
        given = 0

        def read(self, size=-1):
            type(self).given += size
            return b"\0" * size

    with pytest.raises(AudioError, match="more than the cap"):
        Audio.open(Endless(), max_bytes=10_000_000)
    assert Endless.given < 13_000_000


@pytest.mark.parametrize("announced", [0xFFFFFFFF, 0xFFFFFFF0])
def test_a_header_of_many_channels_asks_for_no_more_memory_than_there_is_sound(announced):
    asked = []

    class Watched(io.BytesIO):
        def read(self, size=-1):
            asked.append(size)
            return super().read(size)

    body = riff(chunk(b"fmt ", fmt_body(1, 1, 32)[:2] + struct.pack("<HIIHH", 65535, RATE, 0, 0, 32)),
                b"data" + struct.pack("<I", announced) + bytes(1000))  # fmt: skip
    with pytest.raises(AudioError, match=r"no samples|is cut"):
        audio_formats.decode(Watched(body), name="it", max_s=60)
    assert max(asked) < 1 << 24
