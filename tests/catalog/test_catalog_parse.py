"""Names to variants: every spelling of a known one, and an error with near names for all others."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from izwi_lab import catalog
from izwi_lab.catalog import Task
from izwi_lab.errors import UnknownModelError, WrongTaskError

ROWS = catalog.variants(include_disabled=True)
unhurried = settings(deadline=None)  # a shared machine stalls now and then
NAMES = [(name, v.id) for v in ROWS for name in (v.id, v.repo, v.repo_tail, v.display_name, *v.aliases)]
RESOLVERS = {
    Task.TTS: catalog.parse_tts_model_variant,
    Task.CHAT: catalog.parse_chat_model_variant,
    Task.ASR: catalog.resolve_asr_model_variant,
}


@pytest.mark.parametrize(("name", "expected"), NAMES)
def test_every_name_of_a_variant_finds_it(name, expected):
    assert catalog.parse_model_variant(name).id == expected


@unhurried
@given(
    st.sampled_from(NAMES),
    st.lists(st.sampled_from([str.upper, str.lower, str.swapcase, str.title]), min_size=1, max_size=1),
    st.sampled_from(["", " ", "_", "--", " . "]),
    st.sampled_from(["", " ", "\t\n"]),
)
def test_case_and_punctuation_do_not_matter(named, case, gap, around):
    name, expected = named
    spelled = around + case[0](name).replace("-", gap).replace(" ", gap) + around
    assert catalog.parse_model_variant(spelled).id == expected


@pytest.mark.parametrize(
    ("name", "expected"),
    [  # what users of the original type
        ("qwen3-tts-0.6b-base", "Qwen3-TTS-12Hz-0.6B-Base"),
        ("Qwen3_TTS_0.6B_CustomVoice_int8", "Qwen3-TTS-12Hz-0.6B-CustomVoice-8bit"),
        ("qwen3-tts-1.7b-voicedesign bfloat16", "Qwen3-TTS-12Hz-1.7B-VoiceDesign-bf16"),
        ("parakeet tdt v3", "Parakeet-TDT-0.6B-v3"),
        ("parakeet-tdt-v2", "Parakeet-TDT-0.6B-v2"),
        ("lfm2.5 audio", "LFM2.5-Audio-1.5B"),
        ("lfm2dot5-audio", "LFM2.5-Audio-1.5B"),
        ("LFM2 Audio", "LFM2-Audio-1.5B"),
        ("voxtral", "Voxtral-Mini-4B-Realtime-2602"),
        ("qwen3 0.6b int4", "Qwen3-0.6B-4bit"),
        ("gemma3 1b", "Gemma-3-1b-it"),
        ("google/gemma-3-4b-it", "Gemma-3-4b-it"),
        ("forced aligner", "Qwen3-ForcedAligner-0.6B"),
        ("kokoro", "Kokoro-82M"),
    ],
)
def test_the_originals_aliases(name, expected):
    assert catalog.parse_model_variant(name).id == expected


@pytest.mark.parametrize(
    ("name", "near"),
    [  # each of these silently became another model in the original
        ("Qwen3-TTS-12Hz-0.6B-VoiceDesign", "Qwen3-TTS-12Hz-1.7B-VoiceDesign"),
        ("whisper-1", "Whisper-base"),
        ("parakeet", "Parakeet-TDT-0.6B-v3"),
        ("qwen3-asr-17", "Qwen3-ASR-1.7B"),
        ("qwen3-tts-1.7b-base-4bit", "Qwen3-TTS-12Hz-0.6B-Base-4bit"),
        ("my voxtral fine-tune", "Voxtral-Mini-4B-Realtime-2602"),
        ("kokorro", "Kokoro-82M"),
    ],
)
def test_what_is_not_a_model_raises_with_the_nearest(name, near):
    with pytest.raises(UnknownModelError) as caught:
        catalog.parse_model_variant(name)
    assert near in caught.value.nearest
    assert near in str(caught.value) and repr(name) in str(caught.value)
    assert len(caught.value.nearest) <= 5 == len({*caught.value.nearest, *range(5 - len(caught.value.nearest))})


@pytest.mark.parametrize("name", ["", "   ", "…", "\x00", "-/-", 7, None, b"kokoro"])
def test_no_name_at_all_raises(name):
    with pytest.raises(UnknownModelError):
        catalog.parse_model_variant(name)


@pytest.mark.parametrize("name", ["whisper-base-日本", "evil/whisper-base", "whisper-base2", "Kokoro-82M/../x"])
def test_a_name_with_anything_more_is_another_name(name):
    with pytest.raises(UnknownModelError):
        catalog.get(name)


@unhurried
@given(st.text(max_size=300))
def test_any_text_is_a_model_or_raises_unknown(text):
    try:
        variant = catalog.parse_model_variant(text)
    except UnknownModelError as error:
        assert set(error.nearest) <= {v.id for v in ROWS}
    else:
        assert variant in ROWS


@unhurried
@given(st.one_of(st.text(max_size=60), st.sampled_from([n for n, _ in NAMES])), st.sampled_from(list(RESOLVERS)))
def test_a_task_resolver_gives_its_task_or_raises(text, task):
    try:
        variant = RESOLVERS[task](text)
    except (UnknownModelError, WrongTaskError):
        return
    assert task in variant.tasks


def test_a_very_long_name_is_refused_quickly_and_shown_short():
    with pytest.raises(UnknownModelError) as caught:
        catalog.get("whisper " * 20_000)
    assert len(str(caught.value)) < 400


@pytest.mark.parametrize(
    ("resolve", "name", "does"),
    [
        (catalog.parse_tts_model_variant, "Whisper-base", "asr"),
        (catalog.parse_tts_model_variant, "Qwen3-TTS-Tokenizer-12Hz", "tokenizer"),
        (catalog.parse_chat_model_variant, "Kokoro-82M", "tts"),
        (catalog.resolve_asr_model_variant, "Qwen3-0.6B", "chat"),
        (catalog.resolve_asr_model_variant, "Qwen3-ForcedAligner-0.6B", "forced_align"),
    ],
)
def test_the_wrong_task_raises_and_names_models_that_do_it(resolve, name, does):
    with pytest.raises(WrongTaskError, match=rf"does {does}") as caught:
        resolve(name)
    suggested = caught.value.hint.partition(": ")[2].rstrip(".").split(", ")
    assert suggested and all(resolve(s) for s in suggested)


def test_without_a_name_the_default_is_used_and_it_does_the_task():
    for task, resolve in RESOLVERS.items():
        assert task in resolve().tasks
        assert resolve() is resolve(None) is catalog.default(task)


def test_models_of_several_tasks_answer_to_each():
    for resolve in (catalog.parse_tts_model_variant, catalog.resolve_asr_model_variant):
        assert resolve("lfm2-audio").id == "LFM2-Audio-1.5B"
