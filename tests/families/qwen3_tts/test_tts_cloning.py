"""A voice from a clip: what is checked before the work, what the clip's mel holds, and what the voice says of it."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from tts_models import checkpoint, clip, ours

from izwi_lab.errors import InvalidInputError
from izwi_lab.families.qwen3_tts import cloning


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return ours(checkpoint(tmp_path_factory.mktemp("base") / "c", "base"))


def test_what_was_not_heard_of_a_clip_is_said_by_the_voice(base):
    voice = base.voice(clip(31.0), name="anna")
    assert voice.notes == ("only the first 30 s of 31.0 s are used",)
    assert "only the first 30 s" in repr(voice)
    assert base.voice(clip(1.0)).notes == ()


@pytest.mark.parametrize(
    "options", [{"name": "y" * 300}, {"name": ""}, {"name": "a\0"}, {"language": "\ud800"}, {"transcript": "Hi\0"}]
)
def test_names_and_texts_are_judged_before_the_clip_is_heard(monkeypatch, base, options):
    monkeypatch.setattr(cloning, "reference", None)
    with pytest.raises(InvalidInputError, match="Voice: "):
        base.voice(clip(1.0), **options)


def test_the_encoder_hears_as_many_bins_as_its_config_says(monkeypatch, base):
    heard = []
    monkeypatch.setattr(base, "config", dataclasses.replace(base.config, speaker=_with_bins(base, 80)))
    monkeypatch.setattr(base, "speaker", lambda mel: heard.append(mel.shape) or base.backend.array(np.ones((1, 64))))
    base.voice(clip(1.0))
    assert heard[0][-1] == 80


def _with_bins(model, bins):
    return dataclasses.replace(model.config.speaker, mel_bins=bins)
