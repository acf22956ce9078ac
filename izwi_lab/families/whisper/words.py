"""Word times from cross-attention: some heads look at the sound of the word being written (openai/whisper `timing.py`).

Shapes: N heads, T tokens, F encoder states (20 ms each).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from izwi_lab.families.shared.steps import Session
from izwi_lab.families.whisper.config import SECONDS_PER_TIMESTAMP
from izwi_lab.results import Word

if TYPE_CHECKING:
    from izwi_lab.families.whisper.model import WhisperModel

_PREPEND = "\"'“¿([{-"
_APPEND = "\"'.。,，!！?？:：”)]}、"
_MEDIAN_WIDTH = 7
_LONGEST_MEDIAN_S = 0.7


def timed_words(
    model: WhisperModel, session: Session, tokens: Sequence[int], *, language: str, heard_s: float, offset_s: float
) -> list[tuple[Word, int]]:
    """See WhisperModel.word_times."""
    end, limit = model.processor.tokens.end, model.config.max_target_positions
    prompt = model.tokenize(language=language if model.config.multilingual else None, timestamps=False)
    text = [i for i in tokens if i < end][: limit - len(prompt) - 1]
    if not text:
        return []
    ids = np.array([[*prompt.ids.tolist(), *text, end]], np.int32)
    backend = model.backend
    with backend.inference():
        held = session.state["net"]
        own = {name: backend.copy(held[name]) for name in ("self_k", "self_v")}  # the session may still go on
        scores, logits = model.net.align(backend.array(ids), {**held, **own, "length": 0}, model.heads)
        backend.evaluate(scores, logits)
        scored, chances = backend.numpy(scores), backend.numpy(logits)
    first = len(prompt) - 1  # this row predicts the first word, the row after the last word the end
    states = round(heard_s / SECONDS_PER_TIMESTAMP)
    times = attention_path(scored, states, slice(first, first + len(text) + 1))
    rows = chances[first : first + len(text), :end]
    top = rows.max(axis=1)
    totals = np.array([np.exp(row - high).sum() for row, high in zip(rows, top, strict=True)])
    probabilities = np.exp(rows[np.arange(len(text)), text] - top) / totals
    groups = merge_punctuation(model.processor.split_words(text, language))
    placed = shorten(place_words(groups, times, probabilities, offset_s))
    return [(word, len(members)) for word, (_, members) in zip(placed, groups, strict=True)]


def attention_path(scores: np.ndarray, states: int, rows: slice) -> np.ndarray:
    """Cross-attention scores [N, T, F] before softmax -> the second at which each of the token rows begins.

    states: encoder states that hold sound; those after it are padding. rows: the tokens to place in time.
    """
    weights = scores[:, :, : max(1, states)].astype(np.float32)
    weights = np.exp(weights - weights.max(axis=-1, keepdims=True))
    weights /= weights.sum(axis=-1, keepdims=True)
    spread = weights.std(axis=-2, keepdims=True)
    weights = (weights - weights.mean(axis=-2, keepdims=True)) / np.maximum(spread, 1e-10)
    tokens, frames = dtw(-median_filter(weights, _MEDIAN_WIDTH).mean(axis=0)[rows])
    first = np.concatenate([[True], np.diff(tokens) > 0])
    times: np.ndarray = frames[first] * SECONDS_PER_TIMESTAMP
    return times


def median_filter(values: np.ndarray, width: int) -> np.ndarray:
    """Median over `width` neighbours along the last axis, mirrored at the ends."""
    half = width // 2
    if values.shape[-1] <= half:
        return values
    padded = np.pad(values, [(0, 0)] * (values.ndim - 1) + [(half, half)], mode="reflect")
    windows = np.lib.stride_tricks.sliding_window_view(padded, width, axis=-1)
    # the middle of an odd number of values; partition is several times faster than a full median
    return np.partition(windows, half, axis=-1)[..., half]


def dtw(cost: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The cheapest monotone path through cost [T, F], as (rows, columns), from one corner to the other.

    Steps: both on, row on, column on, preferred in that order. Computed one anti-diagonal at a time, all in numpy.
    """
    rows, columns = cost.shape
    total = np.full((rows + 1, columns + 1), np.inf, np.float64)
    total[0, 0] = 0.0
    step = np.zeros((rows + 1, columns + 1), np.int8)
    for diagonal in range(2, rows + columns + 1):
        i = np.arange(max(1, diagonal - columns), min(rows, diagonal - 1) + 1)
        j = diagonal - i
        options = np.stack([total[i - 1, j - 1], total[i - 1, j], total[i, j - 1]])
        best = options.argmin(axis=0)
        total[i, j] = cost[i - 1, j - 1] + options[best, np.arange(len(i))]
        step[i, j] = best
    return _backtrace(step)


def _backtrace(step: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    i, j = step.shape[0] - 1, step.shape[1] - 1
    path = []
    while i > 0 or j > 0:
        path.append((i - 1, j - 1))
        move = 2 if i == 0 else 1 if j == 0 else int(step[i, j])
        i -= move != 2
        j -= move != 1
    steps = np.array([p for p in path[::-1] if p[0] >= 0 and p[1] >= 0], np.int64)
    return steps[:, 0], steps[:, 1]


def place_words(
    groups: Sequence[tuple[str, Sequence[int]]], times: np.ndarray, probabilities: np.ndarray, offset_s: float
) -> list[Word]:
    """Words from groups (text, ids): times [T + 1] holds each id's start and the end; probabilities [T] each id's."""
    edges = np.concatenate([[0], np.cumsum([len(ids) for _, ids in groups])]).astype(int)
    return [
        Word(
            text,
            offset_s + float(times[min(a, len(times) - 1)]),
            offset_s + float(times[min(b, len(times) - 1)]),
            float(np.mean(probabilities[a:b])) if b > a else 0.0,
        )
        for (text, _), a, b in zip(groups, edges[:-1], edges[1:], strict=True)
    ]


def shorten(words: Sequence[Word]) -> list[Word]:
    """Words at the edge of a sentence that swallowed a pause, cut to twice the median word (the reference's rule)."""
    lengths = np.array([w.end_s - w.start_s for w in words])
    lengths = lengths[lengths > 0]
    if not len(lengths):
        return list(words)
    longest = 2 * min(_LONGEST_MEDIAN_S, float(np.median(lengths)))
    ends = ".。!！?？"
    out = list(words)
    for n, word in enumerate(out):
        if n == 0 or word.end_s - word.start_s <= longest:
            continue
        if word.text.strip() in ends:
            out[n] = Word(word.text, word.start_s, word.start_s + longest, word.probability)
        elif out[n - 1].text.strip()[-1:] in ends:
            out[n] = Word(word.text, word.end_s - longest, word.end_s, word.probability)
    return out


def merge_punctuation(groups: Sequence[tuple[str, list[int]]]) -> list[tuple[str, list[int]]]:
    """Groups with quotes and brackets joined to the word they belong to."""
    out: list[tuple[str, list[int]]] = []
    opening: tuple[str, list[int]] | None = None
    for text, ids in groups:
        if text.startswith(" ") and text.strip() and text.strip() in _PREPEND:
            opening = (text, list(ids)) if opening is None else (opening[0] + text, opening[1] + ids)
            continue
        if opening is not None:
            text, ids, opening = opening[0] + text.lstrip(), opening[1] + ids, None
        if out and not out[-1][0].endswith(" ") and text in _APPEND:
            out[-1] = (out[-1][0] + text, out[-1][1] + ids)
        else:
            out.append((text, list(ids)))
    return out if opening is None else [*out, opening]
