"""How Qwen3-TTS chooses codes when nothing else is said: the defaults of qwen-tts 0.1.1 and generation_config.json."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self

import numpy as np

from izwi_lab.errors import CheckpointError, InvalidInputError
from izwi_lab.families.shared.config_fields import Fields
from izwi_lab.families.shared.sampling import Sampling

MIN_FRAMES = 2  # the end may not come before (min_new_tokens of the reference)
SPECIAL = 1024  # the last ids of the talker's vocabulary are no sounds: none but the end may be drawn
MAX_FRAMES = 2048  # of one piece of text: 164 s

_SOURCE = "generation_config.json"
_TALKER = Sampling(temperature=0.9, top_k=50, repetition_penalty=1.05)
_PREDICTOR = Sampling(temperature=0.9, top_k=50)


@dataclass(frozen=True, slots=True)
class Generation:
    """What `sample` and `decode` do where nothing is said. talker: draws codebook 0; predictor: the other 15.

    max_frames: after these a session is done.
    """

    talker: Sampling = _TALKER
    predictor: Sampling = _PREDICTOR
    max_frames: int = MAX_FRAMES

    @classmethod
    def from_hf(cls, values: Mapping[str, Any]) -> Self:
        """From generation_config.json; what it does not say is as in the reference.

        Raises:
            CheckpointError: a value that no sampling has.
        """
        fields = Fields(values, source=_SOURCE)
        base = cls()
        try:
            return cls(
                _sampling(fields, base.talker, "", "do_sample"),
                _sampling(fields, base.predictor, "subtalker_", "subtalker_dosample"),
                fields.size("max_new_tokens", base.max_frames, most=1 << 20),
            )
        except InvalidInputError as error:
            raise CheckpointError(f"{_SOURCE} makes no sense. {error}", hint="Fetch the model again.") from None


def check_predictor(sampling: object) -> None:
    """Raise InvalidInputError for a sampling that the code predictor cannot honour."""
    if sampling is None:
        return
    if not isinstance(sampling, Sampling):
        raise InvalidInputError(f"The predictor's sampling must be a Sampling or None, got {sampling!r:.80}.")
    if not sampling.plain:
        raise InvalidInputError(
            "The code predictor draws each code of a frame from another codebook: it knows no penalties and no bias.",
            hint="Leave repetition_penalty at 1, the other penalties at 0, and logit_bias out.",
        )


def allowed(vocab_size: int, eos: int) -> tuple[np.ndarray, np.ndarray]:
    """The talker's ids that may be drawn: before MIN_FRAMES frames, and after. Each int32 [ceil(V / 32)], as bits."""
    sounds = np.arange(vocab_size) < vocab_size - SPECIAL
    early, later = sounds.copy(), sounds.copy()
    early[eos], later[eos] = False, True
    return _bits(early), _bits(later)


def _bits(mask: np.ndarray) -> np.ndarray:
    packed = np.packbits(mask, bitorder="little")
    return np.pad(packed, (0, -len(packed) % 4)).view("<i4").astype(np.int32)


def _sampling(fields: Fields, base: Sampling, prefix: str, switch: str) -> Sampling:
    drawn = fields.flag(switch, True)
    return Sampling(
        temperature=fields.number(f"{prefix}temperature", base.temperature) if drawn else 0.0,
        top_k=fields.integer(f"{prefix}top_k", base.top_k),
        top_p=fields.number(f"{prefix}top_p", base.top_p),
        repetition_penalty=base.repetition_penalty
        if prefix
        else fields.number("repetition_penalty", base.repetition_penalty),
    )
