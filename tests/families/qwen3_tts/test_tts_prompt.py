"""Prompt layouts: the sums they ask for are the embeddings that the vendor's package hands to its talker."""

from __future__ import annotations

import numpy as np
import pytest
from prompt_oracle import CODEBOOKS, CODES, HIDDEN, Oracle

from izwi_lab.families.qwen3_tts.voice import Voice

TEXTS = ["Hi", "Hello there, how are you?", "你好，世界！今天天气很好。"]
WHOLE = {True: "whole", False: "streaming"}


@pytest.fixture(scope="module")
def oracles(tmp_path_factory):
    made: dict[str, Oracle] = {}

    def get(kind: str) -> Oracle:
        if kind not in made:
            made[kind] = Oracle(tmp_path_factory.mktemp(kind), kind)
        return made[kind]

    return get


def voice(frames: int, transcript: str = "") -> Voice:
    rng = np.random.default_rng(frames)
    codes = rng.integers(0, CODES, (CODEBOOKS, frames)).astype(np.int32) if frames else None
    return Voice("anna", rng.standard_normal(HIDDEN).astype(np.float32), codes, transcript)


def check(oracle: Oracle, prompt, expected, following) -> None:
    layout = prompt.extras["layout"]
    assert len(layout.text) == len(layout.codec) == len(layout.codec_names) == len(prompt) == len(expected)
    np.testing.assert_allclose(oracle.summed(layout), expected, atol=2e-6)
    # The vendor writes "nothing but padding" as one pad; ours is an empty list.
    ids = layout.trailing if len(layout.trailing) else [oracle.config.ids.tts_pad]
    np.testing.assert_allclose(oracle.text(np.asarray(ids)), following, atol=2e-6)


@pytest.mark.parametrize("whole", [True, False])
@pytest.mark.parametrize("text", TEXTS)
@pytest.mark.parametrize(
    ("speaker", "language", "instruct"),
    [("Ryan", "English", None), ("eric", None, "Speak sadly."), ("eric", "Chinese", None), ("Eric", "german", None)],
)
def test_preset_voices(oracles, text, speaker, language, instruct, whole):
    oracle = oracles("custom_voice")
    told = {"language": language, "instruct": instruct, "non_streaming_mode": whole}
    expected = oracle.prompt("generate_custom_voice", text, speaker, **told)
    ours = oracle.processor.prompt(text, voice=speaker, language=language, instruct=instruct, text_mode=WHOLE[whole])
    check(oracle, ours, *expected)


@pytest.mark.parametrize("whole", [True, False])
@pytest.mark.parametrize("instruct", ["A calm old man.", ""])
def test_described_voices(oracles, instruct, whole):
    oracle = oracles("voice_design")
    expected = oracle.prompt("generate_voice_design", TEXTS[1], instruct, language="Chinese", non_streaming_mode=whole)
    ours = oracle.processor.prompt(TEXTS[1], language="zh", instruct=instruct, text_mode=WHOLE[whole])
    check(oracle, ours, *expected)


@pytest.mark.parametrize("whole", [True, False])
@pytest.mark.parametrize("text", TEXTS)
@pytest.mark.parametrize("frames", [0, 1, 4, 12, 80])  # text longer and shorter than the reference
def test_cloned_voices(oracles, text, frames, whole):
    oracle, anna = oracles("base"), voice(frames, "we're HERE, Привет" if frames else "")
    expected = oracle.prompt(
        "generate_voice_clone", text, voice_clone_prompt=[oracle.clone_item(anna)], non_streaming_mode=whole
    )
    check(oracle, oracle.processor.prompt(text, voice=anna, text_mode=WHOLE[whole]), *expected)


def test_text_and_reference_of_one_length(oracles):
    oracle = oracles("base")
    said = oracle.processor.prompt("Hi", voice=voice(80, "Hi"), text_mode="whole").extras["layout"]
    known = int(np.argmax(said.text == oracle.config.ids.tts_eos)) - said.speaker_at - 2
    for frames in (known - 1, known, known + 1):  # "Hi" twice and the end, beside bos and the frames
        anna = voice(frames, "Hi")
        expected = oracle.prompt("generate_voice_clone", "Hi", voice_clone_prompt=[oracle.clone_item(anna)])
        check(oracle, oracle.processor.prompt("Hi", voice=anna), *expected)


@pytest.mark.parametrize(
    ("kind", "method", "args"),
    [
        ("custom_voice", "generate_custom_voice", ("Ryan",)),
        ("voice_design", "generate_voice_design", ("A calm old man.",)),
    ],
)
def test_the_text_mode_by_default_is_the_vendors(oracles, kind, method, args):
    oracle = oracles(kind)
    asked = {"voice": args[0]} if kind == "custom_voice" else {"instruct": args[0]}
    check(oracle, oracle.processor.prompt(TEXTS[1], **asked), *oracle.prompt(method, TEXTS[1], *args))


def test_cloning_streams_the_text_by_default(oracles):
    oracle, anna = oracles("base"), voice(4, "Hi there")
    expected = oracle.prompt("generate_voice_clone", TEXTS[1], voice_clone_prompt=[oracle.clone_item(anna)])
    ours = oracle.processor.prompt(TEXTS[1], voice=anna)
    check(oracle, ours, *expected)
    assert ours.extras["text_mode"] == "streaming"


def test_one_token_of_text_brings_nothing_of_the_chat_with_it(oracles):
    oracle = oracles("custom_voice")
    ids = oracle.config.ids
    text = "user"  # one token
    layout = oracle.processor.prompt(text, text_mode="streaming").extras["layout"]
    assert layout.trailing.tolist() == [ids.tts_eos]
    assert ids.im_end not in layout.text
    layout = oracle.processor.prompt(text, text_mode="whole").extras["layout"]
    assert layout.text[-3:].tolist() == [oracle.tokenizer.convert_tokens_to_ids(text), ids.tts_eos, ids.tts_pad]
    assert not len(layout.trailing)


def test_spans_name_the_parts(oracles):
    oracle = oracles("custom_voice")
    prompt = oracle.processor.prompt("Hello there", voice="ryan", language="en", instruct="Sadly.", text_mode="whole")
    spans = {s.name: (s.start, s.stop) for s in prompt.spans}
    assert list(spans) == ["instruct", "role", "language", "voice", "begin", "text", "end of text", "start"]
    assert [stop for _, stop in spans.values()][:-1] == [start for start, _ in spans.values()][1:]
    assert spans["instruct"][0] == 0 and spans["start"][1] == len(prompt)
    assert "".join(prompt.pieces[slice(*spans["text"])]) == "Hello there"
    layout = prompt.extras["layout"]
    assert layout.codec_names[slice(*spans["voice"])] == ("ryan",)
    assert layout.codec_names[slice(*spans["language"])] == ("think", "think_bos", "english", "think_eos")


@pytest.mark.parametrize("mode", ["whole", "streaming"])
def test_spans_of_a_clone(oracles, mode):
    oracle, anna = oracles("base"), voice(40, "Привет")
    prompt = oracle.processor.prompt("Hello", voice=anna, text_mode=mode)
    spans, layout = {s.name: slice(s.start, s.stop) for s in prompt.spans}, prompt.extras["layout"]
    assert "".join(prompt.pieces[spans["text"]]) == "Hello"
    assert len(layout.text[spans["reference text"]]) == len(oracle.processor.tokenizer.encode("Привет").ids)
    assert spans["reference"] == slice(layout.reference_at, layout.reference_at + 40)
    assert layout.codec_names[spans["voice"]] == ("voice anna",)
    assert layout.codec_names[spans["reference"]][:2] == ("reference 0", "reference 1")
    assert (layout.codec[spans["reference"]] == -1).all() and (layout.codec[spans["voice"]] == -1).all()


def test_streams_show_both_sides_and_what_follows(oracles):
    prompt = oracles("custom_voice").processor.prompt("Hello there", voice="ryan", text_mode="streaming")
    rows = prompt.streams()
    assert [n for n, _, _ in rows] == list(range(len(prompt) + len(prompt.extras["layout"].trailing)))
    assert rows[len(prompt) - 1][2] == "bos" and rows[len(prompt)][2] == "frame 0"
    assert rows[len(prompt) - 1][1] + "".join(text for _, text, _ in rows[len(prompt) : -1]) == "Hello there"
    assert rows[-1][1] == "<tts_text_eod>"
    assert f"{rows[len(prompt) - 1][1]}+bos" in repr(prompt) and len(repr(prompt)) < 1000
    page = prompt._repr_html_()
    assert page.count("<tr>") == len(rows) + 1 and "frame 0" in page and "&lt;tts_text_eod&gt;" in page


def test_what_is_typed_cannot_leave_its_cell(oracles):
    prompt = oracles("custom_voice").processor.prompt("<script>x</script>" * 20, voice="ryan")
    page = prompt._repr_html_()
    assert "<script" not in page and "of which 100 are shown" in page
