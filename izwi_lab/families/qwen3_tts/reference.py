"""Reference audio for cloning: opened, checked, at the speaker encoder's rate, with its transcript in step.

Nothing is trimmed, normalised or filtered: the reference implementation (qwen-tts 0.1.1) hears the audio as it is.
Shapes: S samples, F frames, M mel bins.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import BinaryIO

import numpy as np

from izwi_lab.audio import Audio
from izwi_lab.errors import AudioError, InvalidInputError
from izwi_lab.families.qwen3_tts.nets.speaker.mel import RATE_HZ, speaker_mel

MIN_S = 0.5
MAX_S = 30.0  # 375 frames of prompt; a few seconds are enough for a voice
_SILENT_RMS = 1e-3  # -60 dBFS in the loudest stretch
_MOST_PEAK = 8.0  # what mixing may add up to; more was never divided by the full scale of its integers
_STRETCH_S = 0.1
_OPEN_MAX_S = 3600.0  # what is decoded at most before the length is judged
_MOST_CHARACTERS = 2000  # of a transcript: 30 s at twice the speed of any speaker


@dataclass(frozen=True, slots=True, eq=False)
class Reference:
    """Checked reference audio. audio: 24 kHz; transcript: what it says, "" for a voice by its vector alone; notes:
    what was done to it, for the listener.
    """

    audio: Audio
    transcript: str = ""
    notes: tuple[str, ...] = ()

    def mel(self, bins: int) -> np.ndarray:
        """What the speaker encoder reads: float32 [1, F, M]."""
        return speaker_mel(self.audio.samples, bins)[None]


def reference(source: Audio | str | os.PathLike[str] | bytes | BinaryIO, transcript: str | None = None) -> Reference:
    """Check reference audio, and bring it to 24 kHz.

    source: an Audio, or anything `Audio.open` reads. transcript: what it says, word for word, for cloning in context;
    None for the speaker vector alone. Audio over 30 s is refused where it has a transcript, which would no longer say
    what is heard; without one its first 30 s are used, and a note says so.

    Raises:
        AudioError: not audio, silent, NaN or infinite samples, shorter than 0.5 s, or too long.
        InvalidInputError: an empty or far too long transcript.
    """
    audio, words, notes = checked(source, transcript)
    return Reference(audio.resample(RATE_HZ), words, notes)


def checked(
    source: Audio | str | os.PathLike[str] | bytes | BinaryIO, transcript: str | None
) -> tuple[Audio, str, tuple[str, ...]]:
    """What of the audio is used, its words, and notes; raises as `reference`, without the work of another rate."""
    audio = source if isinstance(source, Audio) else Audio.open(source, max_s=_OPEN_MAX_S)
    words = _transcript(transcript)
    _check_samples(audio)
    notes: tuple[str, ...] = ()
    if audio.duration_s > MAX_S:
        if words:
            raise AudioError(
                f"The reference has {audio.duration_s:.1f} s; with a transcript at most {MAX_S:.0f} s are allowed.",
                hint=f"Cut the audio and its transcript to the same words (audio.between(0, {MAX_S:.0f})), or give no "
                f"transcript: the voice is then taken from the first {MAX_S:.0f} s.",
            )
        notes = (f"only the first {MAX_S:.0f} s of {audio.duration_s:.1f} s are used",)
        audio = audio.between(0.0, MAX_S)
    _check_heard(audio)
    return audio, words, notes


def _transcript(transcript: str | None) -> str:
    if transcript is None:
        return ""
    if not isinstance(transcript, str) or not transcript.strip():
        raise InvalidInputError(
            f"The transcript of the reference is {transcript!r:.40}; expected what the audio says, word for word.",
            hint="Give None to take the voice from the audio alone.",
        )
    if len(transcript) > _MOST_CHARACTERS:
        raise InvalidInputError(
            f"The transcript has {len(transcript)} characters; {MAX_S:.0f} s of speech have at most "
            f"{_MOST_CHARACTERS}.",
            hint="Give only the words that the reference audio says.",
        )
    return transcript.strip()


def _check_samples(audio: Audio) -> None:
    if audio.duration_s < MIN_S:
        raise AudioError(
            f"The reference has {audio.duration_s:.2f} s; at least {MIN_S} s are needed.",
            hint="Three to ten seconds of clear speech are best.",
        )
    if bad := int(np.count_nonzero(~np.isfinite(audio.samples))):
        raise AudioError(
            f"The reference holds {bad} samples that are NaN or infinite.", hint="Find the step that made them."
        )
    if audio.peak > _MOST_PEAK:
        raise AudioError(
            f"The reference's samples go up to {audio.peak:g}; full scale is 1.",
            hint="Whole numbers must be divided: Audio.from_samples does so for int16 arrays.",
        )


def _check_heard(audio: Audio) -> None:
    """Raise where the loudest tenth of a second, less its mean, is under -60 dBFS."""
    size = max(1, round(_STRETCH_S * audio.rate_hz))
    stretches = audio.samples[: len(audio.samples) // size * size].reshape(-1, size).astype(np.float64)
    loudest = float(np.sqrt(stretches.var(axis=1).max()))
    if loudest < _SILENT_RMS:
        raise AudioError(
            f"The reference is silent: its loudest {_STRETCH_S} s have an RMS of {loudest:.1e}.",
            hint="Check the recording, or its volume: speech has 0.01 and more.",
        )
