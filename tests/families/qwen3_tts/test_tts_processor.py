"""Text to Prompts: the tokenizer against transformers', what is refused and with which words, long text in pieces."""

from __future__ import annotations

import json
import random
import re

import numpy as np
import pytest
from prompt_oracle import CODEBOOKS, HIDDEN, SPECIAL, TEXTS, Oracle, fast_tokenizer, official_config, write_tokenizer

from izwi_lab.errors import CheckpointError, InvalidInputError
from izwi_lab.families.qwen3_tts.config import TTSConfig
from izwi_lab.families.qwen3_tts.processor import PIECE, Processor
from izwi_lab.families.qwen3_tts.voice import Voice
from izwi_lab.families.shared.qwen_tokenizer import qwen_tokenizer
from izwi_lab.families.shared.sentences import weight

LONG = " ".join(f"This is sentence number {n}, and it says nothing new." for n in range(95))  # 5,000 characters


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    made = tmp_path_factory.mktemp("tokenizer")
    write_tokenizer(made)
    return made


@pytest.fixture(scope="module")
def make(tmp_path_factory):
    """A processor of a kind and size."""

    def build(kind: str, size: str = "1b7") -> Processor:
        folder = tmp_path_factory.mktemp(kind)
        ids = write_tokenizer(folder)
        assistant = qwen_tokenizer(folder).token_to_id("assistant")
        return Processor.from_folder(folder, TTSConfig.from_hf(official_config(kind, size, ids, assistant)))

    return build


@pytest.fixture(scope="module")
def custom(make):
    return make("custom_voice")


@pytest.fixture(scope="module")
def base(make):
    return make("base")


def anna(**changes) -> Voice:
    return Voice(**{"name": "Anna", "embedding": np.ones(HIDDEN, np.float32), **changes})


def test_the_built_tokenizer_encodes_as_transformers_does(folder):
    ours, theirs = qwen_tokenizer(folder), fast_tokenizer(folder)
    rng = random.Random(0)
    alphabet = [*" \n\t\r'.,!?aAbzZ09", "é", "e\u0301", "ß", "你", "好", "ア", "한", "🙂", "\u200d", *SPECIAL]
    texts = [*TEXTS, "", *("".join(rng.choices(alphabet, k=rng.randrange(40))) for _ in range(300))]
    for text in texts:
        ids = ours.encode(text, add_special_tokens=False).ids
        assert ids == theirs(text)["input_ids"], repr(text)
        assert ours.decode(ids, skip_special_tokens=False) == theirs.decode(ids, skip_special_tokens=False)


def test_tokenizer_json_comes_first(folder, tmp_path):
    (tmp_path / "tokenizer.json").write_text(qwen_tokenizer(folder).to_str(), encoding="utf-8")
    assert qwen_tokenizer(tmp_path).encode(TEXTS[1]).ids == qwen_tokenizer(folder).encode(TEXTS[1]).ids


def test_added_tokens_keep_their_ids_past_a_gap(tmp_path):
    ids = write_tokenizer(tmp_path, gap=5)
    tokenizer = qwen_tokenizer(tmp_path)
    assert {name: tokenizer.token_to_id(name) for name in SPECIAL} == ids
    assert tokenizer.encode("a<|im_end|>b").ids[1] == ids["<|im_end|>"]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("merges.txt", None, "no merges.txt"),
        ("vocab.json", None, "no vocab.json"),
        ("vocab.json", "{", "Cannot read"),
        ("vocab.json", "[1]", "not a JSON object"),
        ("vocab.json", '{"a": 1, "b": 1}', "given twice"),
        ("vocab.json", '{"a": -1}', "no vocabulary"),
        ("merges.txt", "a b c\n", "two tokens"),
        ("merges.txt", "qqq zzz\n", "does not fit together"),
        ("tokenizer_config.json", '{"added_tokens_decoder": {"5": {"content": "<x>"}}}', "twice"),
        ("tokenizer_config.json", '{"added_tokens_decoder": {"x": {"content": "<x>"}}}', "no sense"),
        ("tokenizer_config.json", '{"added_tokens_decoder": {"99999999999": {"content": "<x>"}}}', "no sense"),
        ("tokenizer_config.json", '{"added_tokens_decoder": {"900": 5}}', "no sense"),
        ("tokenizer.json", "{}", "Cannot read"),
    ],
)
def test_damaged_tokenizer_files_are_named(tmp_path, name, content, message):
    write_tokenizer(tmp_path)
    (tmp_path / name).unlink(missing_ok=True)
    if content is not None:
        (tmp_path / name).write_text(content, encoding="utf-8")
    with pytest.raises(CheckpointError, match=message):
        qwen_tokenizer(tmp_path)


def test_a_tokenizer_of_another_model_is_refused(folder, tmp_path, custom):
    write_tokenizer(tmp_path, gap=3)
    with pytest.raises(CheckpointError, match=r"<\|im_start\|> at"):
        Processor.from_folder(tmp_path, custom.config)
    settings = json.loads((folder / "tokenizer_config.json").read_text("utf-8"))
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(settings | {"added_tokens_decoder": {}}), "utf-8")
    with pytest.raises(CheckpointError, match="at None"):
        Processor.from_folder(tmp_path, custom.config)


@pytest.mark.parametrize("text", TEXTS)
@pytest.mark.parametrize("before", ["", " ", "\n", " \n\n "])
def test_text_ids_are_the_vendors(tmp_path_factory, custom, text, before):
    vendor = Oracle.vendor_ids(custom.tokenizer, before + text)
    layout = custom.prompt(before + text, text_mode="streaming").extras["layout"]
    ours = [layout.text[-1], *layout.trailing[:-1]]
    # White space before the first word is not spoken; a line end there melts into the role's in the vendor's prompt.
    assert ours == (vendor if "\n" not in before else Oracle.vendor_ids(custom.tokenizer, text))


@pytest.mark.parametrize("typed", ["<|im_end|>", "<tts_pad>", "Say <|im_start|>user and <tts_text_eod> now."])
def test_control_tokens_that_are_typed_are_letters(custom, make, typed):
    control = {custom.tokenizer.token_to_id(n) for n in SPECIAL}
    prompt = custom.prompt(typed, text_mode="whole", instruct=typed)
    spans = {s.name: prompt.ids[s.start : s.stop] for s in prompt.spans}
    assert not control & set(spans["text"].tolist())
    assert custom.tokenizer.decode(spans["text"].tolist(), skip_special_tokens=False) == typed
    ends = [custom.config.ids.im_start, custom.config.ids.im_end]
    assert [i for i in spans["instruct"] if i in control] == ends
    voice = anna(codes=np.zeros((CODEBOOKS, 3), np.int32), transcript=typed)
    prompt = make("base").prompt("Hi", voice=voice, text_mode="whole")
    said = next(prompt.ids[s.start : s.stop] for s in prompt.spans if s.name == "reference text")
    assert not control & set(said.tolist())


@pytest.mark.parametrize("text", ["", " ", "\n\t ", None, 5, b"Hi", "half \ud83d of it"])
def test_text_that_says_nothing_is_refused(custom, text):
    for call in (custom.prompt, custom.prompts):
        with pytest.raises(InvalidInputError, match=r"The text (is|holds)"):
            call(text)


@pytest.mark.parametrize(
    ("language", "expected"),
    [
        (None, "auto"), ("auto", "auto"), ("Auto", "auto"), ("English", "english"), (" ENGLISH ", "english"),
        ("en", "english"), ("en-US", "english"), ("zh_CN", "chinese"), ("de", "german"),
    ],
)  # fmt: skip
def test_languages(custom, language, expected):
    assert custom.prompt("Hi", voice="ryan", language=language).extras["language"] == expected


@pytest.mark.parametrize("language", ["klingon", "", "ja", "xx-YY", 5, "sichuan_dialect"])
def test_an_unknown_language_is_refused_with_the_known_ones(custom, language):
    with pytest.raises(InvalidInputError, match="auto, chinese, english, german") as caught:
        custom.prompt("Hi", language=language)
    assert ("eric" in str(caught.value)) == (language == "sichuan_dialect")


def test_a_dialect_is_spoken_by_its_voice_unless_another_language_is_asked_for(custom):
    def spoken(voice, language):
        return custom.prompt("Hi", voice=voice, language=language).extras["language"]

    assert spoken("eric", None) == spoken("eric", "auto") == spoken("Eric", "zh") == "sichuan_dialect"
    assert spoken("eric", "english") == "english" and spoken("ryan", "zh") == "chinese"


def test_voices_in_any_case_and_the_same_default_every_time(custom):
    assert custom.voices == ("ryan", "eric", "ono_anna") and custom.default_voice == "ryan"
    for given in ("Ono_anna", "ONO ANNA", "ono-anna"):
        assert custom.prompt("Hi", voice=given).extras["voice"] == "ono_anna"
    assert custom.prompt("Hi").extras["voice"] == "ryan"


@pytest.mark.parametrize("voice", ["anna", "", 5, anna()])
def test_an_unknown_voice_is_refused_with_the_known_ones(custom, voice):
    with pytest.raises(InvalidInputError, match="Expected a name" if voice == 5 else "ryan, eric, ono_anna"):
        custom.prompt("Hi", voice=voice)


def test_instructions_are_read_or_refused_but_never_dropped(make, custom, base):
    assert custom.prompt("Hi", instruct="Sadly.").spans[0].name == "instruct"
    assert custom.prompt("Hi", instruct=" ").spans[0].name == "role"
    small, design = make("custom_voice", "0b6"), make("voice_design")
    with pytest.raises(InvalidInputError, match=r"0\.6B CustomVoice .*1\.7B"):
        small.prompt("Hi", instruct="Sadly.")
    assert small.prompt("Hi", instruct="").spans[0].name == "role"
    with pytest.raises(InvalidInputError, match="takes no instructions"):
        base.prompt("Hi", voice=anna(), instruct="Sadly.")
    with pytest.raises(InvalidInputError, match="needs a description"):
        design.prompt("Hi")
    with pytest.raises(InvalidInputError, match="no voices to choose from"):
        design.prompt("Hi", voice="ryan", instruct="Old.")
    assert design.prompt("Hi", instruct="").spans[0].name == "role"
    with pytest.raises(InvalidInputError, match="instruct is a int"):
        custom.prompt("Hi", instruct=5)
    with pytest.raises(InvalidInputError, match="The instruction holds"):
        custom.prompt("Hi", instruct="\udfff")


def test_a_base_model_needs_a_voice_that_fits_it(base):
    assert base.voices == () and base.default_voice is None
    assert base.prompt("Hi", voice=anna()).extras["voice"] == "Anna"
    codes = np.zeros((CODEBOOKS, 4), np.int32)
    for voice, message in (
        (None, "none was given"),
        ("ryan", "got the name 'ryan'"),
        (anna(embedding=np.ones(HIDDEN * 2, np.float32), source="Big"), f"vector of {HIDDEN * 2}, by Big"),
        (anna(codes=codes[:8], transcript="Hi"), "8 codebooks"),
        (anna(codes=codes + 64, transcript="Hi"), "up to 64"),
    ):
        with pytest.raises(InvalidInputError, match=re.escape(message)):
            base.prompt("Hi", voice=voice)


def test_text_modes(custom):
    with pytest.raises(InvalidInputError, match='"whole" or "streaming"'):
        custom.prompt("Hi", text_mode="fast")
    assert custom.prompt("Hi").extras["text_mode"] == "whole"


def test_long_text_is_cut_at_sentences_and_keeps_its_voice(custom, base):
    assert len(LONG) > 4900
    for processor, voice in ((custom, "eric"), (base, anna())):
        prompts = list(processor.prompts(LONG, voice=voice, language="en"))
        assert len(prompts) > 5 and {p.extras["voice"] for p in prompts} == {getattr(voice, "name", voice)}
        assert " ".join(p.text for p in prompts) == LONG
        assert all(p.text.endswith("new.") and weight(p.text) <= PIECE for p in prompts)


def test_the_text_of_a_described_voice_stays_whole(make):
    design = make("voice_design")
    text = LONG[: 4 * PIECE]
    assert [p.text for p in design.prompts(text, instruct="Old.")] == [text]


def test_errors_come_when_prompts_is_called_and_not_later(custom):
    with pytest.raises(InvalidInputError, match="Unknown voice"):
        custom.prompts(LONG, voice="nobody")


def test_more_than_the_context_holds_is_refused(custom):
    with pytest.raises(InvalidInputError, match="room for 4096"):
        custom.prompt("word " * 5000)
