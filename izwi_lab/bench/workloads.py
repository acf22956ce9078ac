"""The standard workloads: a 241-token prompt with 128 tokens after it, 44 s of read speech, one spoken sentence.

Fixed in content and order, so that figures taken months apart are of the same work. They travel to the workers as JSON;
recordings travel as a path to float32 samples, so that no contender's decoder is timed.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from izwi_lab.bench.contender import Workload
from izwi_lab.errors import InvalidInputError

if TYPE_CHECKING:
    import numpy as np

PROMPT_TOKENS = 241
NEW_TOKENS = 128
SPEECH_HZ = 16_000
PAUSE_S = 0.5

# Jane Austen, Sense and Sensibility (1811), chapter 1; the recordings below are read from the same chapter.
PROSE = (
    "The family of Dashwood had long been settled in Sussex. Their estate was large, and their residence was at "
    "Norland Park, in the centre of their property, where, for many generations, they had lived in so respectable a "
    "manner as to engage the general good opinion of their surrounding acquaintance. The late owner of this estate "
    "was a single man, who lived to a very advanced age, and who for many years of his life, had a constant "
    "companion and housekeeper in his sister. But her death, which happened ten years before his own, produced a "
    "great alteration in his home; for to supply her loss, he invited and received into his house the family of his "
    "nephew Mr. Henry Dashwood, the legal inheritor of the Norland estate, and the person to whom he intended to "
    "bequeath it. In the society of his nephew and niece, and their children, the old Gentleman's days were "
    "comfortably spent. His attachment to them all increased. The constant attention of Mr. and Mrs. Henry Dashwood "
    "to his wishes, which proceeded not merely from interest, but from goodness of heart, gave him every degree of "
    "solid comfort which his age could receive; and the cheerfulness of the children added a relish to his "
    "existence. By a former marriage, Mr. Henry Dashwood had one son: by his present lady, three daughters."
)

# A counting-out rhyme's way of going on: a model that has read it a few times says it again.
ROUND = (
    "One for the master, and one for the dame, and one for the little boy who lives down the lane.\n"
    "Baa, baa, black sheep, have you any wool? Yes, sir, yes, sir, three bags full.\n"
)

SENTENCE = (
    "The kettle began to sing while the rain ran down the window, and nobody in the kitchen wanted to speak first."
)
# What our text front end makes of SENTENCE; Kokoro and its peers are handed this.
PHONEMES = (
    "ðə kˈɛTᵊl bəɡˈæn tə sˈɪŋ wˌIl ðə ɹˈAn ɹˈæn dˌWn ðə wˈɪndO, ænd nˈObˌɑdi ɪn ðə kˈɪʧᵊn wˈɑntᵻd tə spˈik fˈɜɹst."
)

# LibriVox clips by the number in their file name, with what is said (the published transcript's slip "a more a
# amiable" put right, and "mister" as it is usually written).
CLIPS: Mapping[str, str] = {
    "0870": "And Mr. John Dashwood had then leisure to consider how much there might be prudently in his power "
    "to do for them.",
    "0880": "He was not an ill disposed young man,",
    "0890": "unless to be rather cold hearted and rather selfish is to be ill disposed.",
    "0920": "Had he married a more amiable woman, he might have been made still more respectable than he was:",
    "0930": "he might even have been made amiable himself.",
}
CLIP_ORDER = ("0870", "0880", "0890", "0920", "0930", "0870", "0890", "0880")


def chat(
    *,
    prompt_tokens: int = PROMPT_TOKENS,
    tokens: int = NEW_TOKENS,
    add_bos: bool = False,
    synthetic: bool = False,
) -> Workload:
    """A plain prompt of `prompt_tokens` ids read at once, then `tokens` greedy ones.

    synthetic: ids are made up instead of tokenized, for a model without its tokenizer.
    """
    data = {
        "text": "" if synthetic else PROSE,
        "prompt_tokens": prompt_tokens,
        "tokens": tokens,
        "add_bos": add_bos,
    }
    return Workload("chat", "chat", f"{prompt_tokens}-token prompt, {tokens} tokens greedy", data)


def repetitive(*, tokens: int = NEW_TOKENS, add_bos: bool = False) -> Workload:
    """Like `chat`, with a prompt that says the same again and again, as code, tables and quotations do."""
    data = {"text": ROUND * 12, "prompt_tokens": PROMPT_TOKENS, "tokens": tokens, "add_bos": add_bos}
    return Workload(
        "repetitive", "chat", f"{PROMPT_TOKENS}-token prompt that repeats itself, {tokens} tokens greedy", data
    )


def tts(*, voice: str | None = "af_heart", language: str | None = None) -> Workload:
    """One sentence of about six seconds. voice: None takes the model's own first choice."""
    data = {"text": SENTENCE, "phonemes": PHONEMES, "voice": voice, "language": language}
    return Workload("tts", "tts", "one sentence, about 6 s of audio", data)


def asr(recording: Path, *, seconds: float, reference: str, language: str | None = "en") -> Workload:
    """Transcribe a recording greedily. recording: float32 mono samples at 16 kHz in a .npy file."""
    data = {
        "samples": str(recording),
        "rate_hz": SPEECH_HZ,
        "seconds": seconds,
        "reference": reference,
        "language": language,
    }
    return Workload("asr", "asr", f"{seconds:.1f} s of read speech, greedy", data)


def librivox(folder: Path) -> tuple[np.ndarray, str]:
    """The clips of `folder` joined in CLIP_ORDER with pauses: float32 samples [S] at 16 kHz, and what is said.

    Raises InvalidInputError when a clip is not there.
    """
    from izwi_lab.audio import Audio

    clips = {number: Audio.open(_clip(folder, number)).resample(SPEECH_HZ) for number in CLIPS}
    pause = Audio.silence(PAUSE_S, SPEECH_HZ)
    parts = [part for number in CLIP_ORDER for part in (clips[number], pause)]
    return Audio.concat(parts).samples, " ".join(CLIPS[number] for number in CLIP_ORDER)


def read_samples(data: Mapping[str, Any]) -> np.ndarray:
    """The samples of an asr workload, float32 [S]."""
    import numpy as np

    samples: np.ndarray = np.load(data["samples"])
    return samples


def digest(value: Sequence[int] | str) -> str:
    """A short fingerprint of ids or text, to see whether two runs read or wrote the same."""
    return hashlib.sha256(json.dumps(value).encode()).hexdigest()[:12]


def _clip(folder: Path, number: str) -> Path:
    found = sorted(p for p in folder.glob(f"*{number}.*") if p.suffix in (".flac", ".wav")) if folder.is_dir() else []
    if not found:
        raise InvalidInputError(
            f"No clip *{number}.flac or .wav is in {folder}.",
            hint="Run from a checkout, which has the clips in tests/data/librivox, or pass --speech FOLDER.",
        )
    return found[0]
