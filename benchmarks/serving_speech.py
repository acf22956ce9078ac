"""Ours for the streams of benchmarks.serving: Qwen3-TTS with random weights, and a tokenizer made up for it."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from benchmarks.served import Served, measured
from benchmarks.serving_ours import Serving, together
from izwi_lab.bench.contender import Measurement, Workload

WORD, LINE_END = 1000, 198  # ids in the vocabulary of Qwen3; which word it is makes no difference to the work


class ServingSpeech(Serving):
    """`at_once` streams, which all start together and never come to an end before their last frame."""

    def load(self) -> Mapping[str, Any]:
        """See Serving; gives the model words to read."""
        from izwi_lab.families.qwen3_tts.processor import Processor

        facts = super().load()
        with self._engine.use(self._model) as model:
            model.processor = Processor(tokenizer_of(model.config.ids), model.config)
            self._sampling = replace(model.generation.talker, logit_bias={model.config.ids.codec_eos: float("-inf")})
            self._voice = model.voices[0]
        return facts

    def run(self, workload: Workload) -> Measurement:
        """All streams, read as they come."""
        text = " ".join(["word"] * int(workload.data["text_tokens"]))
        found: list[Served] = []

        def client(seed: int) -> None:
            served = Served(time.perf_counter())
            with self._engine.stream_speak(
                text,
                model=self._model,
                voice=self._voice,
                language="english",
                text_mode="whole",
                sampling=self._sampling,
                max_frames=int(workload.data["frames"]),
                seed=seed,
            ) as stream:
                for chunk in stream:
                    served.came_s.append(time.perf_counter())
                    served.audio_s += chunk.audio.duration_s
            found.append(served)

        clients: list[Callable[[], None]] = [lambda seed=seed: client(seed) for seed in range(self._at_once)]  # type: ignore[misc]
        together(clients)
        return measured(found)


def tokenizer_of(ids: Any) -> Any:
    """A tokenizer that knows the control tokens of a config, and for which all words are one."""
    from tokenizers import AddedToken, Regex, Tokenizer, models, pre_tokenizers

    control = {"<|im_start|>": ids.im_start, "<|im_end|>": ids.im_end}
    known = {**control, "assistant": ids.assistant, "\n": LINE_END, "<word>": WORD}
    made = Tokenizer(models.WordLevel(known, unk_token="<word>"))
    made.pre_tokenizer = pre_tokenizers.Split(Regex(r"assistant|\n| ?[^\s]+"), "isolated")
    made.add_special_tokens([AddedToken(text, special=True, normalized=False) for text in control])
    return made
