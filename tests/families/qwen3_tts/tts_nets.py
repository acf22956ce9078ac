"""Talker and predictor nets on tiny checkpoints, for tests: loading, and a greedy run."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import tiny_tts

from izwi_lab.artifacts.checkpoint import open_checkpoint
from izwi_lab.artifacts.tensors import Tensor
from izwi_lab.families.qwen3_tts import weights
from izwi_lab.families.shared.weights import Renamed

CASES = {"wide-base": ("base", False), "projected-custom": ("custom_voice", True)}


def checkpoint(arrays):
    return {name: Tensor.of(value) for name, value in arrays.items()}


def net_of(folder: Path, config, backend, layout: str = "hf"):
    """The net of a folder, loaded as the family does."""
    opened = open_checkpoint(folder, layout)
    try:
        found = Renamed(opened, weights.net_rules(config))
        return backend.net(weights.PACKAGE, "TTSNet", config, found, keep_stored=weights.KEEP_STORED)
    finally:
        opened.close()


def greedy(backend, net, x, frames: int, state=None):
    """(logits [frames + 1, V], hidden [frames + 1, H], codes [K, frames]) after a prompt of embeddings [1, T, H].

    The first code of a frame is the best sound; nothing of the text is added to the frames.
    """
    state = net.state() if state is None else state
    logits, hidden = net.talk(x, state)
    all_logits, all_hidden, codes = [backend.numpy(logits)[0]], [backend.numpy(hidden)[0]], []

    def best(found, index):
        return int(backend.numpy(found)[0].argmax())

    for _ in range(frames):
        first = int(all_logits[-1][: tiny_tts.CODES].argmax())
        codes.append(net.predict(hidden, first, best))
        x = net.frames(backend.array(np.asarray(codes[-1], np.int32)[None, :, None]))
        logits, hidden = net.talk(x, state)
        all_logits.append(backend.numpy(logits)[0])
        all_hidden.append(backend.numpy(hidden)[0])
    return np.stack(all_logits), np.stack(all_hidden), np.asarray(codes).T
