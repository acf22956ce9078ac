"""Voices of fine-tuned checkpoints, whose names hold spaces and hyphens, are chosen as they are listed."""

from __future__ import annotations

import pytest
import tiny_tts

from izwi_lab.errors import CheckpointError, InvalidInputError
from izwi_lab.families.qwen3_tts.asking import asked, voices
from izwi_lab.families.qwen3_tts.config import TTSConfig

NAMED = {"my-voice": 60, "Anna Bell": 61, "uncle_fu": 62, " edge ": 63}


def config(named: dict[str, int]) -> TTSConfig:
    values = tiny_tts.config("custom_voice")
    values["talker_config"] |= {"spk_id": named, "spk_is_dialect": {}}
    return TTSConfig.from_hf(values)


def chosen(named: dict[str, int], voice: str | None) -> int | None:
    return asked(config(named), voice=voice, language=None, instruct=None, text_mode=None).speaker.id


def test_every_listed_voice_can_be_chosen_as_it_is_listed():
    for name in voices(config(NAMED)):
        assert chosen(NAMED, name) == config(NAMED).voices[name]
    assert chosen(NAMED, None) == 60


@pytest.mark.parametrize(
    ("voice", "number"),
    [
        ("my-voice", 60), ("My-Voice", 60), ("my voice", 60), ("my_voice", 60), (" MY-VOICE ", 60),
        ("Anna Bell", 61), ("anna bell", 61), ("Anna_Bell", 61), ("anna-bell", 61),
        ("Uncle_Fu", 62), ("uncle fu", 62), ("edge", 63),
    ],
)  # fmt: skip
def test_case_spaces_and_hyphens_do_not_matter(voice, number):
    assert chosen(NAMED, voice) == number


def test_names_that_differ_in_a_hyphen_alone_are_told_apart_where_they_can_be():
    alike = {"my-voice": 60, "my_voice": 61, "ryan": 62}
    assert [chosen(alike, v) for v in ("my-voice", "MY_VOICE", "ryan")] == [60, 61, 62]
    with pytest.raises(CheckpointError, match="'my-voice', 'my_voice'"):
        chosen(alike, "my voice")
    assert chosen({"my-voice": 60, "my_voice": 60}, "my voice") == 60


def test_what_is_not_listed_is_unknown():
    with pytest.raises(InvalidInputError, match=r"Unknown voice 'myvoice'.*my-voice, anna bell"):
        chosen(NAMED, "myvoice")
