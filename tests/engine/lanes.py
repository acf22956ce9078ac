"""A lane on a tiny chat model with a real net, and requests of every kind for it."""

from __future__ import annotations

import itertools
import re

import numpy as np
from scripted_chat import chat_model
from tiny_text import FULL, HYBRID, config, text_model

from izwi_lab.cancel import CancelToken
from izwi_lab.engine.admission import Admission
from izwi_lab.engine.job import Job
from izwi_lab.engine.lane import Lane, LaneOptions
from izwi_lab.engine.metrics import EngineMetrics
from izwi_lab.engine.outbox import END, Outbox
from izwi_lab.engine.timeline import Timeline
from izwi_lab.families.shared import talk
from izwi_lab.families.shared.chat_options import ChatOptions
from izwi_lab.families.shared.course import Ask
from izwi_lab.families.shared.sampling import Sampling
from izwi_lab.families.shared.steps import Prompt

_numbers = itertools.count()
PAGED = (FULL, FULL)
KINDS = {"paged": PAGED, "slots": HYBRID}


def talker(kind="paged", backend=None, *, seed=0, context=160):
    """A chat model that says nonsense, but always the same."""
    processor = chat_model().processor
    vocab = processor.vocab_size if hasattr(processor, "vocab_size") else processor.tokenizer.get_vocab_size()
    model = text_model(config(KINDS[kind], vocab=vocab, context=context), backend, seed=seed)
    model.processor, model._stops = processor, processor.stop_ids
    return model


def lane(model, *, sequences=8, step_tokens=48, blocks=None, block=8, cache_bytes=None):
    """A lane with so many blocks; None: as few as hold one whole context."""
    options = LaneOptions(
        sequences=sequences,
        block=block,
        step_s=10.0,  # steps are bounded by tokens alone: the same ones every time
        step_tokens=step_tokens,
        kv_bytes=(blocks or 1) * block * max(1, model.position_bytes),
    )
    told = {"metrics": EngineMetrics(), "timeline": Timeline(), "admission": Admission()}
    return Lane("tiny", model, options, cache_bytes=cache_bytes, **told)


def ask(model, prompt, options, **job):
    """A job that asks for its first step, as `runtime.batching` makes it."""
    token = CancelToken()
    course = talk.course(model, prompt, options, cancel=token)
    made = Job(f"j{next(_numbers)}", course, token, Outbox(), **job)
    made.ask = next(course)
    assert isinstance(made.ask, Ask)
    return made


def run(lane, *, most=5000):
    """Until nothing is left to do."""
    for _ in range(most):
        lane.stop_cancelled()
        lane.settle()
        if not lane.ready:
            return
        lane.step()
        lane.settle()
    raise AssertionError("it does not come to an end")


def pieces(job):
    """All that came out; raises what ended it."""
    found = []
    while (piece := job.outbox.take()) is not END:
        found.append(piece)
    return found


def tokens(deltas):
    return tuple(d.token for d in deltas if d.token is not None)


def mixed(model, rng):
    """A prompt and options of some kind; many prompts begin alike."""
    vocab = model.config.vocab_size
    common = np.arange(3, 3 + 24) % vocab
    own = rng.integers(3, min(vocab, 200), rng.integers(1, 40))
    ids = np.concatenate((common, own)) if rng.random() < 0.5 else own
    kind = rng.integers(0, 5)
    most = int(rng.integers(1, 50))
    if kind == 0:
        options = ChatOptions(max_tokens=most)
    elif kind == 1:
        options = ChatOptions(
            max_tokens=most, seed=int(rng.integers(1000)), sampling=Sampling(temperature=0.9, top_k=20)
        )
    elif kind == 2:
        sampling = Sampling(temperature=1.2, repetition_penalty=1.3, presence_penalty=0.4)
        options = ChatOptions(max_tokens=most, seed=int(rng.integers(1000)), sampling=sampling)
    elif kind == 3:
        regex = {"type": "regex", "regex": "[a-f]{3,9}( [0-9]{1,4}){0,3}"}
        options = ChatOptions(max_tokens=most, response_format=regex, seed=3, sampling=Sampling(temperature=0.7))
    else:
        options = ChatOptions(max_tokens=most, stop=["a", "Q"], logprobs=1)
    return Prompt(ids.astype(np.int32)), options


def fits_grammar(text):
    return re.fullmatch("[a-f]{0,9}( ?[0-9]{0,4}){0,3}", text) is not None
