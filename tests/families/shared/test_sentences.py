"""Where sentences end, in scripts with and without spaces, and long text in pieces that lose nothing."""

from __future__ import annotations

import re

import pytest

from izwi_lab.families.shared.sentences import pieces, sentences, weight

ENGLISH = 'He left at 5 p.m. on Monday. "Really?" she asked. Dr. Smith (of St. Ives) said no! It cost $3.50.\nNew line'
CHINESE = "他说：“你好！”然后走了。再见！真的吗？我们去公园，看花、看鸟；然后回家。"
JAPANESE = "彼は「行くぞ！」と言った。そして、走り出した。『本当？』誰も知らない。"
KOREAN = "안녕하세요 여러분. 오늘은 날씨가 좋습니다. 어디 가세요? 집에 갑니다."
RUSSIAN = "Привет! Как дела? Всё хорошо… Спасибо."
ALL = {"english": ENGLISH, "chinese": CHINESE, "japanese": JAPANESE, "korean": KOREAN, "russian": RUSSIAN}


def bare(text: str) -> str:
    return re.sub(r"\s", "", text)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (ENGLISH, [
            "He left at 5 p.m. on Monday.", '"Really?" she asked.', "Dr. Smith (of St. Ives) said no!",
            "It cost $3.50.", "New line",
        ]),
        (CHINESE, ["他说：“你好！”然后走了。", "再见！", "真的吗？", "我们去公园，看花、看鸟；然后回家。"]),
        (JAPANESE, ["彼は「行くぞ！」と言った。", "そして、走り出した。", "『本当？』誰も知らない。"]),
        (RUSSIAN, ["Привет!", "Как дела?", "Всё хорошо…", "Спасибо."]),
        ("", []),
        ("。。。！", ["。。。！"]),
    ],
)  # fmt: skip
def test_sentences_end_where_a_reader_ends_them(text, expected):
    assert list(sentences(text)) == expected


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("limit", [1, 7, 30, 75, 400])
def test_pieces_lose_nothing_and_stay_within_the_limit(name, limit):
    text = ALL[name] * 6
    got = list(pieces(text, limit))
    assert bare("".join(got)) == bare(text)
    assert all(p == p.strip() and p for p in got)
    assert all(weight(p) <= limit or len(p) == 1 for p in got)


def test_a_text_that_fits_is_one_piece_as_it_is():
    assert list(pieces("  One. Two.\nThree.  ", 100)) == ["One. Two.\nThree."]
    assert list(pieces(" \n ", 100)) == []


def test_pieces_hold_whole_sentences_as_many_as_fit():
    text = "One is here. Two is here. Three is here. Four is here."
    assert list(pieces(text, 28)) == ["One is here. Two is here.", "Three is here. Four is here."]
    assert list(pieces("再见！真的吗？是的。好吧！", 21)) == ["再见！真的吗？", "是的。好吧！"]


def test_a_sentence_over_the_limit_is_cut_at_clauses_then_words():
    text = "We walked to the park, looked at flowers, and went home without them"
    assert list(pieces(text, 30)) == ["We walked to the park,", "looked at flowers,", "and went home without them"]
    assert list(pieces("我们去公园，看花、看鸟；然后回家", 30)) == ["我们去公园，看花、看鸟；", "然后回家"]
    assert list(pieces("word " * 4 + "end", 12)) == ["word word", "word word", "end"]


def test_dense_scripts_weigh_more():
    assert weight("hello") == 5 and weight("你好") == 6 and weight("안녕 hi") == 9
