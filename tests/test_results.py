"""Results: subtitles, JSON, and what a notebook shows of them."""

import itertools
import json
import math
import re
from html.parser import HTMLParser

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from izwi_lab.audio import Audio
from izwi_lab.results import ChatReply, Segment, Speech, Timing, Transcript, Word
from izwi_lab.subtitles import CUE_CHARS, CUE_S, LINE_CHARS, cues

HOSTILE = '<script>alert("x")</script><img src=x onerror=alert(1)> & \' "'
TIMING = Timing(total_s=1.0, first_s=0.25, prefill_s=0.2, decode_s=0.8, audio_s=4.0, prompt_tokens=7, tokens=40)


def words(text, start_s=0.0, step_s=0.4, probability=0.9):
    return tuple(
        Word(word, round(start_s + i * step_s, 3), round(start_s + i * step_s + 0.3, 3), probability)
        for i, word in enumerate(text.split())
    )


def transcript(*segments, **fields):
    text = " ".join(s.text for s in segments)
    end_s = segments[-1].end_s if segments else 0.0
    return Transcript(**{"text": text, "language": "en", "duration_s": end_s, "segments": segments, **fields})


def parse_srt(text):
    """(number, start ms, end ms, lines) of each cue, by the letter of the format."""
    found = []
    for block in text.strip("\n").split("\n\n") if text else []:
        number, times, *lines = block.split("\n")
        match = re.fullmatch(r"(\d\d+):(\d\d):(\d\d),(\d{3}) --> (\d\d+):(\d\d):(\d\d),(\d{3})", times)
        h, m, s, ms, h2, m2, s2, ms2 = map(int, match.groups())
        start, end = ((h * 60 + m) * 60 + s) * 1000 + ms, ((h2 * 60 + m2) * 60 + s2) * 1000 + ms2
        assert lines and all(lines) and "-->" not in "\n".join(lines)
        found.append((int(number), start, end, lines))
    return found


# --- subtitles -----------------------------------------------------------------------------------------------------


def test_srt_and_vtt_to_the_letter():
    heard = transcript(Segment(0, 0.0, 1.5, " Hello there."), Segment(1, 3661.0005, 3662.9996, "Fish & <chips>."))
    assert heard.to_srt() == (
        "1\n00:00:00,000 --> 00:00:01,500\nHello there.\n\n2\n01:01:01,000 --> 01:01:03,000\nFish & <chips>.\n\n"
    )
    assert heard.to_vtt() == (
        "WEBVTT\n\n00:00:00.000 --> 00:00:01.500\nHello there.\n"
        "\n01:01:01.000 --> 01:01:03.000\nFish &amp; &lt;chips&gt;.\n"
    )


def test_no_words_no_cues():
    for empty in (transcript(), transcript(Segment(0, 0, 1, "  "))):
        assert empty.to_srt() == "" and empty.to_vtt() == "WEBVTT\n"


def test_text_without_segments_is_one_cue_over_the_whole():
    heard = Transcript("Hello.", "en", 2.5)
    assert heard.to_srt() == "1\n00:00:00,000 --> 00:00:02,500\nHello.\n\n"


def test_text_cannot_break_out_of_its_cue():
    heard = transcript(Segment(0, 0, 1, "one\n\n2\n00:00:00,000 --> 00:00:09,000\ntwo --> three"))
    ((number, start, end, lines),) = parse_srt(heard.to_srt())
    assert (number, start, end) == (1, 0, 1000)
    assert " ".join(lines) == "one 2 00:00:00,000 -> 00:00:09,000 two -> three"


def test_long_segment_with_word_times_is_split_at_sentences():
    text = (
        "It was a bright cold day in April, and the clocks were striking. Winston Smith slipped quickly through the "
        "glass doors, though not quickly enough to prevent a swirl of gritty dust from entering along with him."
    )
    heard = transcript(Segment(0, 0.0, 15.0, text, words(text)))
    found = cues(heard)
    assert found[0].text == "It was a bright cold day in April, and the clocks were striking."
    assert " ".join(c.text for c in found) == text
    assert all(len(c.text) <= CUE_CHARS and c.end_s - c.start_s <= CUE_S for c in found)
    assert found[0].start_s == 0.0 and found[-1].end_s == heard.words[-1].end_s
    for lines in (c[3] for c in parse_srt(heard.to_srt())):
        assert len(lines) <= 2 and all(len(line) <= LINE_CHARS for line in lines)


def test_cues_of_one_segment_are_even():
    text = "Every evening, just before sunset, the keeper climbed the narrow stairs and lit the great lamp."
    first, second = cues(transcript(Segment(0, 0.0, 8.0, text, words(text))))
    assert len(second.text) > 0.6 * len(first.text) and f"{first.text} {second.text}" == text


def test_long_segment_without_word_times_keeps_its_own_times():
    text = "word " * 60
    (cue,) = cues(transcript(Segment(0, 1.0, 29.0, text)))
    assert (cue.start_s, cue.end_s, cue.text) == (1.0, 29.0, text.strip())


def test_languages_without_spaces_are_split_without_adding_any():
    text = "今日はとても良い天気ですから、" * 12
    each = tuple(Word(c, i * 0.1, i * 0.1 + 0.1) for i, c in enumerate(text))
    found = cues(transcript(Segment(0, 0.0, len(text) * 0.1, text, each)))
    assert len(found) > 2 and "".join(c.text for c in found) == text


def test_words_spelt_otherwise_than_the_text_lose_nothing():
    text = "It cost twenty-five dollars, he said. " * 6
    spoken = words(text.replace("twenty-five", "25"))
    found = cues(transcript(Segment(0, 0.0, 20.0, text.strip(), spoken)))
    assert " ".join(c.text for c in found) == text.strip()


@pytest.mark.parametrize("arrow", ["-->", "--->", "------>", "-->-->"])
def test_no_arrow_is_left_of_a_longer_one(arrow):
    heard = transcript(Segment(0, 0.0, 1.0, f"one {arrow} two"))
    (_, _, _, lines), *others = parse_srt(heard.to_srt())
    assert not others and lines[0].startswith("one ->") and lines[0].endswith("> two")


@settings(max_examples=150, deadline=None)
@given(st.lists(st.lists(st.text("ab.,! -\n<&>é界", min_size=1, max_size=30), max_size=30), max_size=5), st.booleans())
def test_any_text_gives_valid_ordered_cues_and_loses_no_letter(sentences, timed):
    segments, at = [], 0.0
    for i, sentence in enumerate(sentences):
        text = " ".join(sentence)
        length_s = 0.4 * len(text.split()) + 0.2
        segments.append(Segment(i, at, at + length_s, text, words(text, at) if timed else ()))
        at += length_s
    heard = transcript(*segments)
    found = parse_srt(heard.to_srt())
    assert [n for n, *_ in found] == list(range(1, len(found) + 1))
    assert all(start <= end for _, start, end, _ in found)
    assert all(a[1] <= b[1] for a, b in itertools.pairwise(found))
    shown = "".join("".join(lines) for *_, lines in found)
    assert "".join(shown.split()) == "".join(
        re.sub("-{2,}>", "->", " ".join(s.text.split())).replace(" ", "") for s in segments
    )
    assert heard.to_vtt().count(" --> ") == len(found)


# --- JSON and text -------------------------------------------------------------------------------------------------


def test_dict_has_the_fields_of_verbose_json():
    timed = Segment(3, 1.25, 2.0, "Grüße.", words("Grüße.", 1.25), (5, 6), 0.2, -0.3, 1.1, 0.01)
    value = json.loads(transcript(timed, timing=TIMING, model="m", backend="b").to_json())
    assert value["segments"] == [
        {"id": 3, "seek": 125, "start": 1.25, "end": 2.0, "text": "Grüße.", "tokens": [5, 6], "temperature": 0.2,
         "avg_logprob": -0.3, "compression_ratio": 1.1, "no_speech_prob": 0.01}
    ]  # fmt: skip
    assert value["words"] == [{"word": "Grüße.", "start": 1.25, "end": 1.55, "probability": 0.9}]
    assert (value["task"], value["language"], value["duration"], value["text"]) == ("transcribe", "en", 2.0, "Grüße.")
    assert value["timing"]["rtf"] == 0.25 and value["timing"]["tokens_per_s"] == 50
    assert "Grüße" in transcript(timed).to_json(indent=None)


def test_words_are_left_out_when_not_asked_for():
    assert "words" not in transcript(Segment(0, 0, 1, "Hi.")).to_dict()


def test_untimed_results_are_valid_json():
    assert json.loads(Transcript("", "en", 0.0).to_json())["timing"]["rtf"] is None


def test_text_forms():
    heard = transcript(Segment(0, 0, 1, "Hi there.", words("Hi there.")))
    assert str(heard) == heard.to_text() == "Hi there."
    assert [w.text for w in heard.words] == ["Hi", "there."]
    assert str(ChatReply("Blue.", "stop")) == "Blue."


def test_timing():
    assert TIMING.rtf == 0.25 and TIMING.tokens_per_s == 50
    assert str(TIMING) == "1.00 s, first after 0.25 s, 0.25 RTF (4.0x real time), 50.0 tokens/s"
    assert math.isnan(Timing().rtf) and math.isnan(Timing().tokens_per_s)
    assert str(Timing()) == "not timed"


# --- notebooks -----------------------------------------------------------------------------------------------------


class Page(HTMLParser):
    """Tags, attributes and text as a browser would see them."""

    def __init__(self, html):
        super().__init__()
        self.tags, self.attributes, self.text = [], [], ""
        self.feed(html)

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += attrs

    def handle_data(self, data):
        self.text += data


def speech(text=HOSTILE, seconds=0.5):
    return Speech(Audio(np.full(round(seconds * 8000), 0.25, np.float32), 8000), text, HOSTILE, "en", HOSTILE, HOSTILE)


SHOWN = [
    speech(),
    transcript(Segment(0, 0, 1, HOSTILE), language=HOSTILE, model=HOSTILE, backend=HOSTILE),
    transcript(Segment(0, 0, 1, HOSTILE, words(HOSTILE))),
    Transcript(HOSTILE, "en", 1.0),
    ChatReply(HOSTILE, HOSTILE, (1,), HOSTILE, HOSTILE, TIMING),
    TIMING,
]


@pytest.mark.parametrize("value", SHOWN, ids=lambda v: type(v).__name__)
def test_html_escapes_everything_and_survives_the_sanitiser(value):
    html = value._repr_html_()
    page = Page(html)
    assert set(page.tags) <= {"div", "span", "table", "tr", "td", "img", "audio", "br", "code"}
    assert not any(name.startswith("on") for name, _ in page.attributes)
    assert all(v.startswith("data:") for name, v in page.attributes if name == "src")
    assert "var(" not in html
    if not isinstance(value, Timing):
        assert '<script>alert("x")</script>' in page.text


@pytest.mark.parametrize("value", SHOWN, ids=lambda v: type(v).__name__)
def test_text_repr_is_one_line(value):
    assert "\n" not in repr(value)


def test_speech_repr_is_short_and_html_plays():
    long = speech("x" * 100_000)
    assert len(repr(long)) < 400
    assert len(long._repr_html_()) < 30_000 and "<audio controls" in long._repr_html_()
    assert "<audio" not in speech(seconds=121)._repr_html_()


def test_transcript_html_fades_doubtful_words_and_shows_their_times():
    sure, unsure = Word("Hello", 0.0, 0.4, 1.0), Word("wurld.", 0.5, 0.9, 0.0)
    html = transcript(Segment(0, 0, 1, "Hello wurld.", (sure, unsure)))._repr_html_()
    assert 'title="0.00–0.40 s, probability 1.00" style="opacity:1.00">Hello ' in html
    assert 'style="opacity:0.40">wurld.' in html


def test_transcript_html_stops_at_200_rows():
    html = transcript(*(Segment(i, i, i + 1, f"line {i}.") for i in range(450)))._repr_html_()
    assert html.count("<tr>") == 200 and "and 250 more segments" in html
    assert "7:29" not in html and "3:19.0 – 3:20.0" in html


def test_html_says_where_it_came_from():
    html = ChatReply("Blue.", "length", (1, 2), "SmolLM2", "torch cpu", TIMING)._repr_html_()
    assert "SmolLM2 · torch cpu · 2 tokens · 1.00 s" in html and "finished by length" in html
    assert "finished" not in ChatReply("Blue.", "stop")._repr_html_()
    assert "real-time factor" in TIMING._repr_html_() and "0.25" in TIMING._repr_html_()
    assert "–" in Timing()._repr_html_()


def test_results_import_no_numpy():
    import subprocess
    import sys
    from pathlib import Path

    code = (
        "import sys; from izwi_lab.results import Transcript, Segment\n"
        "t = Transcript('Hi.', 'en', 1.0, (Segment(0, 0, 1, 'Hi.'),)); t.to_srt(); t.to_json(); str(t.timing)\n"
        "assert 'numpy' not in sys.modules"
    )
    root = Path(__file__).parents[1]
    done = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_no_speed_of_a_moment():
    assert "tokens/s" not in str(Timing(total_s=0.5, first_s=0.5, decode_s=2e-5, tokens=2))
    assert "4.0 tokens/s" in str(Timing(total_s=1.0, first_s=0.5, decode_s=0.5, tokens=2))
