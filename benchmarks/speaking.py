"""Ours for benchmarks.qwen3_tts: frames by hand, decoded to sound in the chunks of a stream."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

from izwi_lab.bench.contender import Measurement, Workload
from izwi_lab.bench.ours import Ours
from izwi_lab.bench.worker import resident_bytes
from izwi_lab.bench.workloads import digest


def speech(frames: int, text_tokens: int) -> Workload:
    """A preset voice, all text before the first frame, so many frames and no end before them."""
    title = f"{text_tokens} tokens of text to {frames} frames = {frames / 12.5:.1f} s of speech, sampled"
    return Workload("speech", "tts", title, {"frames": frames, "text_tokens": text_tokens})


def text_ids(count: int) -> list[int]:
    """Ids of a text for a model that has no tokenizer."""
    return [37 * i % 200 for i in range(count)]


class Speaking(Ours):
    """A CustomVoice variant, with random weights where they are not here: what is said is noise, at full cost."""

    def load(self) -> Mapping[str, Any]:
        """See Ours; notes what the process held before the weights."""
        from izwi_lab.runtime.load import backend_for
        from izwi_lab.runtime.model_router import ModelRouter

        route = ModelRouter().route(self._name, backend=self._backend, device=self._device, dtype=self._dtype)
        backend_for(route.plan)
        self._base_bytes, self._state_bytes = resident_bytes(), 0
        return super().load()

    def base_bytes(self) -> int:
        """Resident before the weights."""
        return self._base_bytes

    def needed_bytes(self) -> int:
        """Weights, and the caches of the last run."""
        return int(self._model.nbytes) + self._state_bytes

    def run(self, workload: Workload) -> Measurement:
        """One piece of text: prompt, frames, sound."""
        from dataclasses import replace

        from izwi_lab.families.qwen3_tts.talk import FIRST_FRAMES, GROWTH, MOST_FRAMES

        model, data = self._model, workload.data
        frames, end = int(data["frames"]), model.config.ids.codec_eos
        sampling = replace(model.generation.talker, logit_bias={end: float("-inf")})
        prompt = self._prompt_of(int(data["text_tokens"]))
        session = model.session(seed=0, max_frames=frames)
        stream = model.codec.stream()
        start_s = time.perf_counter()
        step = model.prefill(session, prompt)
        prefilled_s = self._now_s()
        sent, size, first_s, samples, sound_s = 0, float(FIRST_FRAMES), 0.0, 0, 0.0
        while not session.done:
            step = model.decode(session, model.sample(session, step, sampling))
            said = session.codes.shape[1]
            if said - sent >= int(size) or session.done:
                began_s = self._now_s()
                samples += stream.push(session.codes[:, sent:said]).size
                sound_s += self._now_s() - began_s
                first_s = first_s or self._now_s() - start_s
                sent, size = said, min(size * GROWTH, MOST_FRAMES)
        end_s = self._now_s()
        self._state_bytes = session.nbytes + stream.nbytes
        return Measurement(
            total_s=end_s - start_s,
            first_s=first_s,
            prefill_s=prefilled_s - start_s,
            decode_s=end_s - prefilled_s - sound_s,
            audio_s=samples / model.codec.rate_hz,
            prompt_tokens=len(prompt),
            tokens=frames,
            input=digest(text_ids(int(data["text_tokens"]))),
            output=digest([samples]),
        )

    def _prompt_of(self, tokens: int) -> Any:
        from izwi_lab.families.qwen3_tts.prompt import Speaker, Words, lay_out
        from izwi_lab.families.shared.steps import Prompt

        config = self._model.config
        role = [config.ids.im_start, config.ids.assistant, 198]
        name, number = next(iter(config.voices.items()))
        words, speaker = Words(role, text_ids(tokens)), Speaker(name, id=number)
        layout, spans = lay_out(config, words, speaker, language="english", whole=True)
        return Prompt(layout.text, spans=spans, extras={"layout": layout})
