"""The requests of benchmarks.serving: prompts of about so many tokens that begin alike or not, and when they come."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from izwi_lab.bench.contender import Workload
from izwi_lab.bench.workloads import PROSE

WORDS = PROSE.split()
TOKENS_PER_WORD = 1.28  # of PROSE, in the tokenizers at hand
ABOVE = 24  # tokens that a template and a request's own beginning take
TEMPLATE = "<|im_start|>system\n{0}<|im_end|>\n<|im_start|>user\n{1}<|im_end|>\n<|im_start|>assistant\n"


def turns(label: str, tokens: int, question: str = "Tell this story anew, at great length.") -> list[dict[str, str]]:
    """Messages of about `tokens` tokens that begin with `label`, so that what begins otherwise is read anew."""
    words = max(1, round((tokens - ABOVE) / TOKENS_PER_WORD))
    said = " ".join(WORDS[i % len(WORDS)] for i in range(words))
    return [{"role": "system", "content": f"{label}. {said}"}, {"role": "user", "content": question}]


def rendered(messages: Sequence[Mapping[str, str]]) -> str:
    """What the ChatML template of SmolLM2 makes of such messages."""
    return TEMPLATE.format(*(message["content"] for message in messages))


def many(requests: int, prompt_tokens: int, tokens: int) -> Workload:
    """Requests of equal length whose prompts begin differently."""
    messages = [turns(f"Story {chr(65 + n)}", prompt_tokens) for n in range(requests)]
    data = {"messages": messages, "texts": [rendered(each) for each in messages], "tokens": tokens}
    title = f"{requests} requests of about {prompt_tokens} tokens, {tokens} tokens greedy each"
    return Workload("many", "serving", title, data)


def short(prompt_tokens: int, beside: int) -> Workload:
    """The first token of a short request, alone or while a long prompt is being read."""
    data = {"prompt_tokens": prompt_tokens, "beside": beside}
    title = f"first token of about {prompt_tokens} tokens, beside {beside} tokens that are being read"
    return Workload("short", "first", title, data)


def prefix(prompt_tokens: int) -> Workload:
    """The first token after a long prompt and a question of its own."""
    title = f"first token after about {prompt_tokens} tokens that others have asked with"
    return Workload("prefix", "first", title, {"prompt_tokens": prompt_tokens})


def speech(text_tokens: int, frames: int) -> Workload:
    """Streams of speech that all start at once."""
    title = f"{text_tokens} tokens of text to {frames} frames = {frames / 12.5:.1f} s of speech in each stream"
    return Workload("speech", "serving", title, {"text_tokens": text_tokens, "frames": frames})


def mixed(requests: int, seconds: float, seed: int = 5) -> Workload:
    """Short and long, greedy and sampled, alike and not, that come at random within so many seconds."""
    rng = np.random.default_rng(seed)
    comes_s = np.sort(rng.uniform(0, seconds, requests))
    asked: list[dict[str, Any]] = []
    for n in range(requests):
        shared = rng.random() < 0.5
        length = int(rng.choice([40, 100, 250, 600], p=[0.4, 0.3, 0.2, 0.1]))
        messages = turns("The library", length, f"Question {n}: and then?") if shared else turns(f"Book {n}", length)
        asked.append(
            {
                "comes_s": float(comes_s[n]),
                "messages": messages,
                "tokens": int(rng.integers(8, 97)),
                "temperature": float(rng.choice([0.0, 0.8])),
                "seed": n,
            }
        )
    title = f"{requests} mixed requests within {seconds:g} s"
    return Workload("mixed", "serving", title, {"requests": asked})
