"""izwi.lab.tiny_tts: every kind speaks, the same on both backends."""

import numpy as np
import pytest

import izwi_lab as izwi
from izwi_lab.audio import Audio
from izwi_lab.errors import InvalidInputError

GREEDY = {"sampling": izwi.Sampling(repetition_penalty=1.05), "predictor": izwi.Sampling(), "max_frames": 4}


def test_both_backends_say_the_same():
    one, other = (
        izwi.lab.tiny_tts(backend=name).generate("Hello.", voice="Eric", **GREEDY) for name in ("torch", "mlx")
    )
    np.testing.assert_allclose(one.audio.samples, other.audio.samples, atol=1e-5)
    assert one.voice == "eric" and 0.01 < np.abs(one.audio.samples).max() < 1.0


def test_every_kind_speaks():
    base = izwi.lab.tiny_tts("base")
    voice = base.voice(Audio(np.sin(np.arange(24000) / 9).astype(np.float32) / 2, 24000), "Hm.")
    assert len(base.generate("Hello.", voice=voice, **GREEDY).audio) == 4 * 1920
    design = izwi.lab.tiny_tts("voice_design")
    assert len(design.generate("Hello.", instruct="A child.", **GREEDY).audio) == 4 * 1920
    with pytest.raises(InvalidInputError, match="no kind"):
        izwi.lab.tiny_tts("large")


def test_what_looks_into_text_models_says_so():
    model = izwi.lab.tiny_tts()
    prompt = model.tokenize("Hi.", voice="ryan")
    session = model.session()
    model.prefill(session, prompt)
    for look in (
        lambda: izwi.lab.attention(model, prompt, layers=[1]),
        lambda: izwi.lab.logit_lens(model, prompt),
        lambda: izwi.lab.cache_table(model, session),
    ):
        with pytest.raises(InvalidInputError, match="looks into text models"):
            look()


@pytest.mark.parametrize("wrong", [{"kind": ["base"]}, {"seed": "a"}, {"seed": -1}])
def test_wrong_arguments_are_refused(wrong):
    with pytest.raises(InvalidInputError):
        izwi.lab.tiny_tts(**wrong)
