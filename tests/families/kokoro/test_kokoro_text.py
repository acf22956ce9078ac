"""Text to pieces and phonemes: nothing is lost, nothing is over the limit, what is not heard is reported."""

import re
import unicodedata

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from izwi_lab import catalog
from izwi_lab.errors import CheckpointError, InvalidInputError
from izwi_lab.families.kokoro.config import KokoroConfig
from izwi_lab.families.kokoro.g2p import EnglishG2P
from izwi_lab.families.kokoro.processor import FIRST_PHONEMES, Processor
from izwi_lab.families.kokoro.splitting import MAX_CHARACTERS, cut, sentences, tidy
from izwi_lab.families.kokoro.voices import ROWS, WIDTH, Voices, label

CONFIG = KokoroConfig.of(catalog.config(catalog.get("Kokoro-82M")))
NAMES = ("af_bella", "af_heart", "am_michael", "bf_emma", "jf_alpha")
WORDS = ("the", "rain", "fell,", "and", "1,204", "boats;", "sailed", "Zyxplok-on-Sea.", "Why?", "“No!”", "$5.50", "x")
PROCESSOR = Processor(CONFIG, Voices({}, dummy=NAMES))


def prompts(text="", *, voice=None, language=None, speed=1.0, phonemes=None):
    return list(PROCESSOR.prompts(text, PROCESSOR.request(voice, language, speed), phonemes=phonemes))


def phonemes_of(text, **options):
    return [p.extras["phonemes"] for p in prompts(text, **options)]


def spoken_marks(text):
    return re.sub(r"\s+", "", text)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Hello there. How are you? Fine!", ["Hello there.", "How are you?", "Fine!"]),
        ("Dr. Smith met J. K. Rowling. They talked.", ["Dr. Smith met J. K. Rowling.", "They talked."]),
        ("It cost 3.50 in the U.S. market. Cheap.", ["It cost 3.50 in the U.S. market.", "Cheap."]),
        ('He said "Stop!" She did.', ['He said "Stop!"', "She did."]),
        ("No. 5 is alive.", ["No. 5 is alive."]),
        ("Wait... what? e.g. this one", ["Wait... what?", "e.g. this one"]),
        ("One\nTwo\n\nThree", ["One", "Two", "Three"]),
        ("   ", []),
    ],
)
def test_sentences_end_where_a_reader_ends_them(text, expected):
    got = list(sentences(text))
    assert got == expected or (text.startswith("Wait") and spoken_marks("".join(got)) == spoken_marks(text))


@settings(max_examples=150, deadline=None)
@given(st.text(st.characters(codec="utf-8"), max_size=1500))
def test_sentences_joined_lose_nothing_and_stay_short(text):
    plain = tidy(text)
    got = list(sentences(plain))
    assert spoken_marks("".join(got)) == spoken_marks(plain)
    assert all(0 < len(s) <= MAX_CHARACTERS for s in got)
    # Everything but separators and control characters is still there.
    kept = sum(not c.isspace() for c in plain)
    assert kept == sum(
        not c.isspace() and (unicodedata.category(c)[0] not in "CZ" or unicodedata.category(c) == "Co")
        for c in unicodedata.normalize("NFC", text)
    )


def test_forms_the_reader_does_not_know_are_made_plain():
    assert tidy("ＨＥＬＬＯ　cafe\u0301 ٣\u200b5") == "HELLO café 3 5"
    assert max(len(w) for w in tidy("a" * 100_000).split()) <= 24
    assert max(len(w) for w in tidy("(" * 5_000).split()) <= 48


@settings(max_examples=100, deadline=None)
@given(st.lists(st.tuples(st.integers(1, 60), st.integers(0, 3)), min_size=1, max_size=200), st.integers(60, 510))
def test_a_cut_fits_and_takes_something(items, limit):
    lengths, ranks = [n for n, _ in items], [r for _, r in items]
    count = cut(lengths, ranks, limit)
    assert 1 <= count <= len(items) and sum(lengths[:count]) <= limit
    if sum(lengths) <= limit:
        assert count == len(items)


@settings(max_examples=60, deadline=None)
@given(
    st.lists(
        st.sampled_from(WORDS),
        min_size=1,
        max_size=400,
    )
)
def test_pieces_hold_every_phoneme_of_their_sentences(words):
    text = " ".join(words)
    reader = EnglishG2P(british=False, vocab=CONFIG.vocab)
    whole = "".join(reader.read(s).phonemes for s in sentences(tidy(text)))
    try:
        pieces = phonemes_of(text)
    except InvalidInputError:
        assert not any(c.isalpha() for c in whole)
        return
    assert all(0 < len(p) <= CONFIG.max_phonemes for p in pieces) and len(pieces[0]) <= FIRST_PHONEMES
    letters = re.compile(r"[^\W\d_]")
    assert letters.findall("".join(pieces)) == letters.findall(whole)


@settings(max_examples=150, deadline=None)
@given(st.text(min_size=1, max_size=200))
def test_any_text_is_spoken_or_refused(text):
    try:
        got = prompts(text)
    except InvalidInputError:
        return
    for prompt in got:
        assert prompt.ids[0] == prompt.ids[-1] == 0 and prompt.ids[1:-1].min() > 0
        assert prompt.ids.shape[0] == len(prompt.pieces) <= 512
        assert np.all(np.isfinite(prompt.extras["style"])) and prompt.extras["style"].shape == (1, 256)
        for span in prompt.spans:
            assert 0 < span.start < span.stop < prompt.ids.shape[0]


def test_numbers_and_abbreviations_are_read_as_words():
    assert phonemes_of("Dr. Smith paid $5.50.") == ["dˈɑktəɹ smˈɪθ pˈAd fˈIv dˈɑləɹz ænd fˈɪfti sˈɛnts."]
    assert len(phonemes_of("It happened in 1984, at 7:30 p.m.")[0]) > 40


def test_british_voices_read_british_english():
    american, british = phonemes_of("The water bottle."), phonemes_of("The water bottle.", voice="bf_emma")
    assert "ɔː" in british[0] and american != british
    assert phonemes_of("The water bottle.", voice="af_heart", language="en-GB") == british
    assert phonemes_of("The water bottle.", voice="bf_emma", language="en-US") == american
    mostly_british = prompts("Water.", voice="af_heart:0.3+bf_emma:0.7")[0]
    assert mostly_british.extras["language"] == "British English"


def test_another_language_is_refused_but_its_phonemes_are_spoken():
    with pytest.raises(InvalidInputError, match=r"French.*phonemes="):
        prompts("Bonjour.", voice="jf_alpha", language="French")
    assert prompts("Hello.", voice="jf_alpha")[0].extras["language"] == "English"
    prompt = prompts(phonemes="bõʒˈuʁ mˈɔ̃d☃.", voice="jf_alpha")[0]
    # The vocabulary has the tilde on its own.
    assert prompt.extras["phonemes"].startswith(unicodedata.normalize("NFD", "bõʒˈuʁ"))
    assert prompt.extras["dropped"] == ("☃",)


def test_what_is_not_heard_is_reported_with_the_piece_nearest_to_it():
    first, second = prompts("你好 one thing. 😀 Two things ☃. 世界")
    assert first.extras["dropped"] == ("你", "好")
    assert set(second.extras["dropped"]) == {"😀", "☃", "世", "界"}
    assert prompts("Plain words, “quoted” (and bracketed) — dashed.")[0].extras["dropped"] == ()


@pytest.mark.parametrize("text", ["", "  \n ", "...", "你好", "😀😀", "\u200b\x00"])
def test_text_with_nothing_to_say_is_refused(text):
    with pytest.raises(InvalidInputError):
        prompts(text)


def test_text_and_phonemes_together_are_refused():
    with pytest.raises(InvalidInputError, match="Both"):
        prompts("Hello.", phonemes="həlˈO")


@pytest.mark.parametrize("speed", [0.49, 2.01, 0, -1, float("nan"), float("inf"), "fast", None])
def test_a_speed_outside_the_range_is_refused(speed):
    with pytest.raises(InvalidInputError, match=r"0\.5 to 2\.0"):
        PROCESSOR.request(None, None, speed)


@pytest.mark.parametrize(
    "text",
    [
        "The quick brown fox jumps over the lazy dog, and then it sleeps. " * 1540,
        "word " * 20_000,
        "a" * 100_000,
        "9" * 100_000,
        "((" * 50_000 + " word",
        "one, two; three: " * 6_000,
    ],
    ids=["sentences", "no stops", "one word", "one number", "brackets", "clauses"],
)
def test_100_000_characters_are_cut_into_pieces_as_they_are_asked_for(text):
    stream = PROCESSOR.prompts(text, PROCESSOR.request(None, None, 1.0))
    first = next(stream)
    assert len(first) <= FIRST_PHONEMES + 2
    lengths = [len(first)] + [len(p) for p in stream]
    assert max(lengths) <= 512
    if not text.startswith("("):
        assert sum(lengths) > 40_000


def test_the_whole_text_as_one_prompt():
    request = PROCESSOR.request("af_heart", None, 1.0)
    prompt = PROCESSOR.prompt("Hello there. How are you?", request)
    assert prompt.extras["phonemes"] == "həlˈO ðˈɛɹ. hˌW ɑɹ ju?"
    assert [s.name for s in prompt.spans][:2] == ["Hello", "there"] and "h|ə|l" in repr(prompt)
    assert "".join(prompt.pieces[s] for s in range(prompt.spans[0].start, prompt.spans[0].stop)) == "həlˈO"
    with pytest.raises(InvalidInputError, match=r"one prompt holds 510.*prompts\(text\)"):
        PROCESSOR.prompt("A long sentence about nothing. " * 40, request)


# Voices ------------------------------------------------------------------------------------------------------------


@pytest.fixture
def folder(tmp_path):
    rng = np.random.default_rng(0)
    (tmp_path / "voices").mkdir()
    for name in ("af_heart", "am_michael", "zf_xiaoni"):
        rng.standard_normal((ROWS, 1, WIDTH), dtype=np.float32).tofile(tmp_path / "voices" / f"{name}.bin")
    return tmp_path


def test_voices_are_listed_and_rows_are_chosen_by_phoneme_count(folder):
    voices = Voices.of(folder)
    assert voices.names == ("af_heart", "am_michael", "zf_xiaoni") and voices.default == "af_heart"
    table = np.fromfile(folder / "voices" / "am_michael.bin", "<f4").reshape(ROWS, WIDTH)
    for count, row in ((1, 0), (200, 199), (510, 509)):
        assert np.array_equal(voices.style(voices.parse("am_michael"), count)[0], table[row])


def test_blends_are_weighted_means(folder):
    voices = Voices.of(folder)
    a, b = (voices.style(voices.parse(n), 7) for n in ("af_heart", "am_michael"))
    equal, weighted = voices.parse("af_heart+am_michael"), voices.parse("af_heart:7 + am_michael:3")
    assert np.allclose(voices.style(equal, 7), (a + b) / 2, atol=1e-6) and label(equal) == "af_heart+am_michael"
    assert np.allclose(voices.style(weighted, 7), 0.7 * a + 0.3 * b, atol=1e-6)
    assert label(weighted) == "af_heart:0.7+am_michael:0.3"
    assert voices.parse("af_heart:0.2+am_michael+af_heart:0.8") == (("af_heart", 0.5), ("am_michael", 0.5))


@pytest.mark.parametrize("voice", ["af_hart", "", "af_heart+", "../af_heart", "am_michael+nobody"])
def test_an_unknown_voice_names_the_nearest(folder, voice):
    with pytest.raises(InvalidInputError, match="af_heart"):
        Voices.of(folder).parse(voice)


@pytest.mark.parametrize("weight", ["0", "-1", "nan", "inf", "x", ""])
def test_a_weight_that_is_no_positive_number_is_refused(folder, weight):
    with pytest.raises(InvalidInputError, match="positive number"):
        Voices.of(folder).parse(f"af_heart:{weight}")


def test_the_default_falls_back_to_english_then_to_the_first(folder):
    (folder / "voices" / "af_heart.bin").unlink()
    assert Voices.of(folder).default == "am_michael"
    (folder / "voices" / "am_michael.bin").unlink()
    assert Voices.of(folder).default == "zf_xiaoni"
    (folder / "voices" / "zf_xiaoni.bin").unlink()
    with pytest.raises(CheckpointError, match="No voices"):
        Voices.of(folder)


def test_a_damaged_voice_says_so(folder):
    path = folder / "voices" / "af_heart.bin"
    path.write_bytes(path.read_bytes()[:-4])
    with pytest.raises(CheckpointError, match="522240"):
        Voices.of(folder).style((("af_heart", 1.0),), 5)
    np.full(ROWS * WIDTH, np.nan, np.float32).tofile(path)
    with pytest.raises(CheckpointError, match="not numbers"):
        Voices.of(folder).style((("af_heart", 1.0),), 5)
