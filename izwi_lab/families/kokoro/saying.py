"""Saying: one request for speech, as a course that asks for its sentences and gives a chunk for each."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from izwi_lab.audio import Audio
from izwi_lab.cancel import CancelToken
from izwi_lab.families.kokoro.processor import Request, unheard
from izwi_lab.families.shared.course import Course, Shared
from izwi_lab.families.shared.piecewise import marking_the_last, piece_seed
from izwi_lab.families.shared.steps import Prompt
from izwi_lab.results import AudioChunk, Speech, Timing

if TYPE_CHECKING:
    from izwi_lab.families.kokoro.model import Kokoro


@dataclass(frozen=True, slots=True)
class Sound:
    """A sentence that was made. prefill_s, decode_s: of the pass that made it, with whatever else was in it."""

    audio: Audio
    prefill_s: float
    decode_s: float


class Saying:
    """A request, checked and not begun. `chunks()` is its course, taken once; `speech()` then tells how it went."""

    def __init__(
        self, model: Kokoro, text: str, request: Request, prompts: Iterator[Prompt], base: int, cancel: CancelToken
    ) -> None:
        self.model, self.text, self.request, self.cancel = model, text, request, cancel
        self.began_s = time.perf_counter()
        self._prompts, self._base = prompts, base
        self._first_s = self._prefill_s = self._decode_s = 0.0
        self._prompt_tokens = 0

    def chunks(self) -> Course:
        """A chunk for each sentence, and before it what it needs of the model."""
        for index, (prompt, last) in enumerate(marking_the_last(self._prompts)):
            self.cancel.check()
            sound: Sound = yield Shared("speak", (prompt, piece_seed(self._base, index)), weight=len(prompt))
            self.cancel.check()
            self._first_s = self._first_s or time.perf_counter() - self.began_s
            self._prompt_tokens += len(prompt)
            self._prefill_s += sound.prefill_s
            self._decode_s += sound.decode_s
            notes = (*(self.request.notes if index == 0 else ()), *unheard(prompt))
            yield AudioChunk(sound.audio, index, text=prompt.text, is_final=last, notes=notes)

    def speech(self, chunks: Iterable[AudioChunk]) -> Speech:
        """The whole, of all the chunks that `chunks()` gave."""
        said = tuple(chunks)
        audio = Audio.concat([chunk.audio for chunk in said])
        timing = Timing(
            total_s=time.perf_counter() - self.began_s,
            first_s=self._first_s,
            prefill_s=self._prefill_s,
            decode_s=self._decode_s,
            audio_s=audio.duration_s,
            prompt_tokens=self._prompt_tokens,
        )
        return Speech(
            audio,
            self.text,
            voice=self.request.voice,
            language=self.request.language,
            model=self.model.variant.id,
            backend=self.model.plan.backend,
            timing=timing,
            notes=tuple(dict.fromkeys(note for chunk in said for note in chunk.notes)),
        )
