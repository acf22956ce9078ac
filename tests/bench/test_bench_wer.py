"""Word error rate: known cases, and what must hold for any two texts."""

from __future__ import annotations

import doctest

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import izwi_lab.bench.wer as wer
from izwi_lab.bench.wer import align, align_words, character_error_rate, normalise_words, word_error_rate

words = st.lists(st.sampled_from(["a", "b", "c", "dee"]), max_size=9)
texts = st.text(alphabet=st.characters(exclude_categories=["Cs"]), max_size=40)


def test_doctests() -> None:
    assert doctest.testmod(wer).failed == 0


@pytest.mark.parametrize(
    ("reference", "hypothesis", "counts"),
    [
        ("a b c", "a b c", (0, 0, 0)),
        ("a b c", "a x c", (1, 0, 0)),
        ("a b c", "a c", (0, 1, 0)),
        ("a b c", "a b b c", (0, 0, 1)),
        ("", "", (0, 0, 0)),
        ("a b", "", (0, 2, 0)),
        ("", "a b", (0, 0, 2)),
        ("Mr. Dashwood", "mister Dashwood", (1, 0, 0)),
        ("two", "2", (1, 0, 0)),
        ("rain-forest", "rain forest", (0, 0, 0)),
        ("rain forest", "rainforest", (1, 1, 0)),
    ],
)
def test_counts(reference: str, hypothesis: str, counts: tuple[int, int, int]) -> None:
    found = align_words(reference, hypothesis)
    assert (found.substitutions, found.deletions, found.insertions) == counts


def test_rate_and_hits() -> None:
    found = align_words("one two three four", "one too three")
    assert found.rate == word_error_rate("one two three four", "one too three") == 0.5
    assert found.hits == 2
    assert found.pairs == (("one", "one"), ("two", "too"), ("three", "three"), ("four", None))


def test_empty_reference_counts_as_one_word() -> None:
    assert word_error_rate("...", "a b") == 2.0
    assert word_error_rate("", "!") == 0.0


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("It’s 10:30, isn't it?", ["it's", "10:30", "isn't", "it"]),
        ("1,000.50 e.g. 'quoted'", ["1,000.50", "e", "g", "quoted"]),
        ("snake_case — dash…", ["snake", "case", "dash"]),
        ("हिन्दी में", ["हिन्दी", "में"]),
        ("ﬁne ＣＡＦＥ\u0301", ["fine", "café"]),
    ],
)
def test_normalisation(text: str, expected: list[str]) -> None:
    assert normalise_words(text) == expected


def test_character_error_rate_ignores_spaces() -> None:
    assert character_error_rate("今日は 天気", "今日は天気") == 0.0
    assert character_error_rate("abcd", "abxd") == 0.25


@given(texts)
def test_a_text_equals_itself_and_normalising_twice_changes_nothing(text: str) -> None:
    assert word_error_rate(text, text) == 0
    once = normalise_words(text)
    assert normalise_words(" ".join(once)) == once


@given(words, words)
@settings(max_examples=200)
def test_alignment_is_consistent(reference: list[str], hypothesis: list[str]) -> None:
    found = align(reference, hypothesis)
    assert [r for r, _ in found.pairs if r is not None] == reference
    assert [h for _, h in found.pairs if h is not None] == hypothesis
    assert found.errors == sum(r != h for r, h in found.pairs)
    assert found.hits + found.substitutions + found.insertions == len(hypothesis)
    assert abs(len(reference) - len(hypothesis)) <= found.errors <= max(len(reference), len(hypothesis))


@given(words, words, words)
def test_distance_is_a_metric(a: list[str], b: list[str], c: list[str]) -> None:
    assert align(a, b).errors == align(b, a).errors
    assert (align(a, b).errors == 0) == (a == b)
    assert align(a, c).errors <= align(a, b).errors + align(b, c).errors
