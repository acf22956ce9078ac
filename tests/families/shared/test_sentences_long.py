"""Long text: pieces end where sentences do, among abbreviations, numbers and initials; paragraphs stay apart."""

from __future__ import annotations

import random
import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from izwi_lab.families.shared.sentences import pieces, sentences, weight

LIMIT = 600

ENGLISH = (
    "Dr. A. B. Smith, Ph.D., of Acme Inc. in Washington, D.C. paid $3.5 million on Jan. 5, and e.g. No. 10 for vol. 2.",
    "The U.S. Army met Mr. J. R. R. Tolkien at No. 7 Baker St. London, approx. Noon, vs. Corp. Ltd. rules!",
    "“Is it really so?” she asked, and nobody, not even Sgt. Pepper, knew what to say to that.",
    "It don't matter.",
    "At 5 p.m. Eastern Time the train (an old one, from 5th Ave. Station) left.",
    "He said no.",
    "Nothing else happened that day, or on the next; still we waited, and waited, and waited…",
    "She ran 5km.",
)
GERMAN = (
    "Am 3. Oktober 1990 zog Herr Prof. Dr. med. Müller, d. h. der Arzt, z. B. in die Hauptstr. 5 um.",
    "Er wohnte ca. Zwanzig km entfernt, u. a. Nr. 7 bzw. Nr. 9, inkl. MwSt. und Abb. Tafel vgl. S. 5 ff. Anhang!",
    "„Das ist ja weit.“",
    "Ludwig XIV. König von Frankreich, usw. Und so fort, kam am 1. Mai mit J. S. Bach von Bad Homburg v. d. Höhe.",
    "Ist das von dieser Art?",
    "Ja.",
    "Die Fr. Schmidt und Hr. Weber gingen, wie gesagt, um 8 Uhr evtl. Nach Hause, max. Tempo 50.",
    "»Komm!« sagte sie laut genug für alle.",
)
CHINESE = (
    "他说：“你好！”然后走了。",
    "价格是3.5元，型号是A-1.2，由J. S. Bach先生和Dr. Smith一起选定。",
    "再见！",
    "我们去公园，看花、看鸟；然后回家，吃饭，睡觉，第二天又去。",
    "真的吗？",
    "「行く」是日语……",
)
JAPANESE = (
    "彼は「行くぞ！」と言った。",
    "Dr. Suzukiは3.5kmを走り、Mr. Tanakaは歩いた。",
    "そして、雨が降り出した！",
    "なぜだろう？",
    "長い道のりを、誰も見ていないところで、ただ一人、静かに、どこまでも歩いて行った。",
)
SHORT = {  # language -> texts that are one sentence each, with periods inside
    "en": (
        "Meet J. S. Bach on Jan. 5 at No. Ten, Main St. West.",
        "See vols. I. and II. Rome, i.e. Italy, etc. Europe.",
    ),
    "de": (
        "Das ist z. B. Nr. 7, Abb. Eins, am 3. Oktober.",
        "Der 2. Weltkrieg, ca. Sechs Jahre, d. h. lang, usw. Ende.",
    ),
    "fr": (
        "Mme. Curie et MM. Dupont, p. ex. Paris, av. J.-C. env. Mille ans.",
        "Le Dr. Roux, bd. Voltaire, art. 5, etc. Fin.",
    ),
    "es": (
        "El Sr. García y la Sra. Pérez viven en la Av. Central, Núm. Dos, pág. Tres, EE. UU. Hoy.",
        "Uds. Van, p. ej. Ana.",
    ),
    "it": (
        "Il Sig. Rossi e il Dott. Bianchi, Ing. Verdi, ecc. Arrivano a pag. Due.",
        "L'Avv. Neri, S. Maria, Prof. Gallo.",
    ),
    "pt": (
        "O Sr. Silva, a Sra. Costa e o Exmo. Dr. Dias, Av. Brasil, pág. Dois, séc. Vinte.",
        "A Profa. Lima, Ltda. Rio, R. Augusta.",
    ),
}


def bare(text: str) -> str:
    return re.sub(r"\s", "", text)


def prose(made: tuple[str, ...], between: str) -> list[str]:
    """Sentences in an order of their own, 5,000 characters together."""
    rng, out = random.Random(4), []
    while len(between.join(out)) < 5000:
        out.append(rng.choice(made))
    return out


@pytest.mark.parametrize(
    ("made", "between"),
    [(ENGLISH, " "), (GERMAN, " "), (CHINESE, ""), (JAPANESE, ""), (ENGLISH, "\n"), (GERMAN, "\n\n")],
    ids=["english", "german", "chinese", "japanese", "lines", "paragraphs"],
)
def test_pieces_of_5000_characters_end_where_sentences_do(made, between):
    said = prose(made, between)
    text = between.join(said)
    ends, at = set(), 0
    for sentence in said:
        at += len(bare(sentence))
        ends.add(at)
    at, found = 0, list(pieces(text, LIMIT))
    for piece in found:
        at += len(bare(piece))
        assert at in ends, piece[-40:]
        assert weight(piece) <= LIMIT
    assert bare("".join(found)) == bare(text)
    assert len(found) <= 1.5 * weight(text) / LIMIT + 1, "as full as sentences allow"


@pytest.mark.parametrize("language", SHORT)
def test_no_sentence_ends_inside_an_abbreviation(language):
    for one in SHORT[language]:
        assert list(sentences(f"{one} Then more.")) == [one, "Then more."]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("No. That is wrong. At No. Ten it is.", ["No.", "That is wrong.", "At No. Ten it is."]),
        (
            "Don't. I won't. Ask Max. Go 5km. On the 1st. Now.",
            ["Don't.", "I won't.", "Ask Max.", "Go 5km.", "On the 1st.", "Now."],
        ),
        ("と言った。Dr. Suzukiは来た。彼はMr. Tanakaだ。", ["と言った。", "Dr. Suzukiは来た。", "彼はMr. Tanakaだ。"]),
        ("„Es ist weit.“ Dann ging er.", ["„Es ist weit.“", "Dann ging er."]),
        ("« Vraiment ? » Oui. « Non ! » dit-il.", ["« Vraiment ? »", "Oui.", "« Non ! » dit-il."]),
        ("Er ging. »Komm!« Sie kam.", ["Er ging.", "»Komm!«", "Sie kam."]),
        ("هل أنت بخير؟ نعم. यह एक है। यह दो।", ["هل أنت بخير؟", "نعم.", "यह एक है।", "यह दो।"]),
    ],
)
def test_sentences_that_end_and_those_that_do_not(text, expected):
    assert list(sentences(text)) == expected


def test_a_paragraphs_end_is_the_first_choice_and_its_break_stays():
    chapter = "Chapter One\n\nIt was late. The rain fell on and on."
    assert list(pieces(f"{chapter}\n\nShe slept. " + "He did not. " * 3, 80)) == [
        chapter,
        "She slept. He did not. He did not. He did not.",
    ]
    assert list(pieces("One.\r\n\r\nTwo is longer.\n \n\nThree.", 24)) == ["One.\r\n\r\nTwo is longer.", "Three."]
    kept = list(pieces("A line\nand its rest.  Two spaces. " * 2 + "End.", 40))
    assert kept == ["A line\nand its rest.  Two spaces.", "A line\nand its rest.  Two spaces. End."]


def test_a_short_paragraph_does_not_make_a_short_piece():
    text = "One.\n\n" + "Two is here. " * 8
    assert len(next(pieces(text, 60))) > 40


def test_lines_without_stops_are_cut_at_their_ends():
    text = "\n".join(f"Item {n}, with a comma" for n in range(20))
    assert all(p.endswith("comma") for p in pieces(text, 60))


def test_a_cut_leaves_no_accent_or_joiner_apart():
    for unit in ("e\u0301", "\U0001f468\u200d\U0001f469\u200d\U0001f467"):
        assert all(p.replace(unit, "") == "" for p in pieces(unit * 400, 100))


PARTS = [
    "Dr.",
    "J.",
    "z. B.",
    " ",
    "\n",
    "\n\n",
    "\u3000",
    "\u2028",
    "\u2029",
    "\r\n",
    ".",
    "。",
    "!",
    "…",
    "»",
    "“",
    "」",
    ",",
    "5",
    "1st.",
    "No.",
]
TEXTS = st.lists(st.one_of(st.sampled_from(PARTS), st.text(max_size=12)), max_size=80).map("".join)


@settings(max_examples=300, deadline=None)
@given(TEXTS, st.integers(1, 80))
def test_nothing_is_lost_or_doubled(text, limit):
    got = list(pieces(text, limit))
    assert bare("".join(got)) == bare(text)
    assert all(p and p == p.strip() and p in text for p in got)
    assert all(weight(p) <= limit or len(p) == 1 for p in got)
    assert bare("".join(sentences(text, limit))) == bare(text)


@pytest.mark.parametrize(
    "text", [" " * 50_000 + "a", "a\n" * 25_000, ". " * 25_000, "a" * 50_000, "\n \n" * 16_000, "A. " * 16_000]
)
def test_odd_texts_of_50_000_characters_take_no_time(text):
    assert bare("".join(pieces(text, LIMIT))) == bare(text)


@pytest.mark.parametrize(
    "text",
    [
        "He was born in 1990. She was born in 1985. They met in Paris in 2010. It rained on March 5. ",
        "Der Kaiser starb 1888. Sein Sohn, der Kronprinz, regierte bis 1918. Am 3. Oktober 1990 war alles anders. ",
    ],
)
def test_a_year_ends_a_sentence(text):
    found = list(pieces(text * 20, 600))
    assert len(found) > 2
    assert all(piece.endswith((".", "5.")) and piece[0].isupper() for piece in found)
    assert " ".join(found).split() == (text * 20).split()
