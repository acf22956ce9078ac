"""Cutting at silences and stitching: pure functions, held to their promises by random inputs."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from izwi_lab.families.shared.chunking import plan_windows, speech_within
from izwi_lab.families.shared.stitching import (
    joined_text,
    monotone,
    repeated_prefix,
    without_words,
    words_of,
)
from izwi_lab.results import Segment, Word


@st.composite
def speech(draw):
    """Spans with gaps between, and the duration that holds them."""
    parts = draw(st.lists(st.tuples(st.floats(0.02, 12.0), st.floats(0.05, 70.0)), max_size=40))
    clock, spans = 0.0, []
    for gap, length in parts:
        spans.append((clock + gap, clock + gap + length))
        clock += gap + length
    return spans, clock + draw(st.floats(0.1, 5.0))


@settings(max_examples=200, deadline=None)
@given(speech())
def test_windows_cover_all_speech_once(case):
    spans, duration = case
    windows = plan_windows(spans, duration)
    assert all(0 <= a < b <= duration and b - a <= 30 + 1e-6 for a, b in windows)
    assert all(a[1] <= b[0] + 1e-6 for a, b in itertools.pairwise(windows))
    heard = sum(speech_within(spans, a, b) for a, b in windows)
    assert heard == pytest.approx(sum(b - a for a, b in spans), abs=1e-4)


@settings(max_examples=100, deadline=None)
@given(speech())
def test_cuts_are_in_silence_where_there_is_any(case):
    spans, duration = case
    windows = plan_windows(spans, duration)
    for (_, end), (start, _) in itertools.pairwise(windows):
        inside = [s for s in spans if s[0] + 1e-6 < end and start < s[1] - 1e-6]
        # only speech longer than a window may be cut
        assert all(b - a > 29.6 - 1e-6 for a, b in inside)


def test_short_audio_is_one_whole_window_and_silence_none():
    assert plan_windows([(3.0, 4.0)], 30.0) == [(0.0, 30.0)]
    assert plan_windows([], 30.0) == []
    assert plan_windows([], 3000.0) == []


def test_the_longest_late_pause_is_the_cut():
    spans = [(0.0, 10.0), (10.2, 18.0), (19.5, 26.0), (26.2, 40.0)]
    windows = plan_windows(spans, 40.0)
    assert windows[0][1] == pytest.approx(18.2)
    assert windows[1][0] == pytest.approx(19.3)


def test_endless_speech_is_cut_at_the_quietest_place():
    asked = []

    def quietest(a, b):
        asked.append((a, b))
        return a + 3.0

    windows = plan_windows([(0.0, 70.0)], 70.0, quietest=quietest)
    assert windows[0][0] == 0.0 and windows[-1][1] == 70.0
    assert asked and windows[0][1] == pytest.approx(asked[0][0] + 3.0)


SEGMENT = st.builds(
    lambda a, n, text: Segment(0, a, a + n, text, (Word(text, a - 0.3, a + n + 0.3),)),
    st.floats(-1, 100),
    st.floats(-1, 20),
    st.text(max_size=5),
)


@given(st.lists(SEGMENT, max_size=20), st.floats(0, 50))
def test_time_never_runs_backwards(segments, after):
    out = monotone(segments, duration_s=90.0, first_id=7, after_s=after)
    assert [s.id for s in out] == list(range(7, 7 + len(segments)))
    assert [s.text for s in out] == [s.text for s in segments]
    assert all(s.start_s <= s.end_s <= 90.0 for s in out)
    assert all(a.end_s <= b.start_s + 1e-9 for a, b in itertools.pairwise(out))
    for s in out:
        assert all(s.start_s - 1e-3 <= w.start_s <= w.end_s <= s.end_s + 1e-3 for w in s.words)


@given(st.lists(st.sampled_from(["alpha", "beta", "gamma", "delta"]), min_size=1, max_size=30), st.data())
def test_splitting_a_text_anywhere_and_joining_gives_it_back(words, data):
    cuts = sorted(data.draw(st.lists(st.integers(0, len(words)), max_size=4)))
    pieces = [words[a:b] for a, b in itertools.pairwise([0, *cuts, len(words)])]
    segments = [Segment(0, 0, 0, "".join(f" {w}" for w in p)) for p in pieces]
    assert joined_text(segments).split() == words


def test_repeats_between_overlapping_windows():
    assert repeated_prefix("he was not a young man.", "A young man, I think") == 3
    assert repeated_prefix("one two", "two three") == 0  # one word alone is no proof
    assert repeated_prefix("one two", "three") == 0
    assert without_words(" A young man, I think", 3) == " I think"
    assert without_words(" only", 1) == ""
    assert without_words(" only", 0) == " only"
    assert words_of("Don't STOP—it's 3.") == ["don't", "stop", "it's", "3"]


@given(
    st.lists(st.sampled_from(["a", "b", "c", "d", "e"]), min_size=2, max_size=8),
    st.lists(st.sampled_from(["v", "w", "x"]), max_size=5),
)
def test_an_overlap_is_removed_exactly(shared, rest):
    before, after = "x y z " + " ".join(shared), " ".join([*shared, *rest])
    count = repeated_prefix(before, after)
    assert count == len(shared)
    assert without_words(after, count).split() == rest


def test_speech_within():
    assert speech_within([(0, 2), (4, 6)], 1, 5) == 2
    assert np.isclose(speech_within([], 0, 9), 0)
