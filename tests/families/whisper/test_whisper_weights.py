"""Whisper with the published weights on human speech: equal to transformers, nothing lost over minutes, faults."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from starter_weights import fetched

from izwi_lab.artifacts.checkpoint import open_checkpoint
from izwi_lab.audio import Audio
from izwi_lab.backends import native
from izwi_lab.backends.base import BackendPlan
from izwi_lab.backends.torch_backend import TorchBackend
from izwi_lab.errors import InvalidInputError
from izwi_lab.families.shared.stitching import words_of
from izwi_lab.families.whisper import model as whisper
from izwi_lab.families.whisper import weights

pytestmark = pytest.mark.weights

CLIPS = Path(__file__).parents[2] / "data" / "librivox"


def load(name: str, dtype: str):
    local = fetched(name)
    native.library("whisper", wait=True)
    plan = BackendPlan("torch", "cpu", dtype, "test")
    return whisper.load(local.variant, local.folder, plan, TorchBackend("cpu", dtype), layout=str(local.layout))


@pytest.fixture(scope="module")
def clips() -> dict[str, tuple[Audio, str]]:
    texts = json.loads((CLIPS / "transcripts.json").read_text())
    return {name: (Audio.open(CLIPS / f"{name}.flac"), text) for name, text in texts.items()}


@pytest.fixture(scope="module")
def fast():
    return load("Whisper-base", "bfloat16")


@pytest.fixture(scope="module")
def exact():
    return load("Whisper-base", "float32")


@pytest.fixture(scope="module")
def english():
    return load("Whisper-tiny.en", "bfloat16")


def spoken(text: str) -> list[str]:
    return ["mr" if w == "mister" else w for w in words_of(text.replace("-", " "))]


def errors(expected: list[str], found: list[str]) -> int:
    row = np.arange(len(found) + 1)
    for i, word in enumerate(expected, 1):
        before, row = row, row.copy()
        row[0] = i
        for j, other in enumerate(found, 1):
            row[j] = min(before[j] + 1, row[j - 1] + 1, before[j - 1] + (word != other))
    return int(row[-1])


@pytest.fixture(scope="module")
def reference(clips) -> dict[str, dict[bool, list[int]]]:
    """transformers' greedy tokens for every clip, without and with timestamps, from the same file of weights."""
    import torch
    from transformers import GenerationConfig, WhisperConfig, WhisperFeatureExtractor, WhisperForConditionalGeneration
    from transformers.utils import logging

    logging.set_verbosity_error()
    local = fetched("Whisper-base")
    config, settings, state = weights.read_ctranslate2(open_checkpoint(local.folder, "ctranslate2"))
    sizes = {name: getattr(config, name) for name in config.__slots__}
    ids = dict(bos_token_id=50_257, eos_token_id=50_257, pad_token_id=50_257, decoder_start_token_id=50_258)
    with torch.device("meta"):
        model = WhisperForConditionalGeneration(WhisperConfig(**sizes, **ids)).eval()
    values = {k: torch.from_numpy(t.float32()) for k, t in state.items()}
    model.load_state_dict(values, strict=False, assign=True)
    model.tie_weights()
    model.generation_config = GenerationConfig(
        **ids,
        max_length=448,
        suppress_tokens=list(settings.suppress),
        begin_suppress_tokens=list(settings.begin_suppress),
        no_timestamps_token_id=50_363,
        is_multilingual=True,
        lang_to_id={"<|en|>": 50_259},
        task_to_id={"transcribe": 50_359, "translate": 50_358},
        max_initial_timestamp_index=50,
    )
    extractor = WhisperFeatureExtractor(feature_size=80)
    out: dict[str, dict[bool, list[int]]] = {}
    for name, (clip, _) in clips.items():
        features = extractor(clip.samples, sampling_rate=16_000, return_tensors="pt").input_features
        out[name] = {}
        for timestamps in (False, True):
            found = model.generate(
                features, language="en", task="transcribe", return_timestamps=timestamps, do_sample=False, num_beams=1
            )
            tokens = found[0].tolist()
            out[name][timestamps] = [t for t in tokens if t < 50_257 or t >= 50_364]
    return out


@pytest.mark.parametrize("precision", ["exact", "fast"])
def test_greedy_tokens_are_those_of_transformers(request, precision, clips, reference):
    model = request.getfixturevalue(precision)
    for name, (clip, _) in clips.items():
        states = model.encode(model.features(clip))
        for timestamps, expected in reference[name].items():
            session = model.session(states)
            step = model.prefill(session, model.tokenize(language="en", timestamps=timestamps))
            while not session.done:
                step = model.decode(session, model.sample(session, step))
            assert session.tokens == expected, (name, timestamps)


def test_whole_transcripts_equal_transformers_and_what_was_said(fast, clips, reference):
    wrong = total = 0
    for name, (clip, text) in clips.items():
        found = fast.generate(clip)
        assert found.language == "en"
        assert found.text == fast.detokenize(reference[name][True]).strip()
        wrong += errors(spoken(text), spoken(found.text))
        total += len(spoken(text))
    assert wrong / total <= 0.04


def test_plain_torch_path_writes_the_same(exact, clips, reference):
    name = min(clips, key=lambda n: clips[n][0].duration_s)
    step_ = exact.net.native
    exact.net.native = None
    try:
        assert exact.generate(clips[name][0]).text == exact.detokenize(reference[name][True]).strip()
    finally:
        exact.net.native = step_


def test_five_minutes_lose_and_repeat_nothing(fast, clips):
    rng = np.random.default_rng(0)
    names = list(clips)
    order: list[str] = []
    parts: list[Audio] = []
    while sum(p.duration_s for p in parts) <= 305:
        for n in rng.permutation(len(names)):
            order.append(names[n])
            parts += [clips[names[n]][0], Audio.silence(float(rng.uniform(0.3, 1.6)), 16_000)]
    recording = Audio.concat(parts)
    found = fast.generate(recording, language="en", word_times=True)
    expected, heard = [w for n in order for w in spoken(clips[n][1])], spoken(found.text)
    assert errors(expected, heard) / len(expected) <= 0.04
    marks = {"0870": "dashwood", "0880": "young", "0890": "selfish", "0920": "married", "0930": "himself"}
    said = [m for w in heard for m in marks.values() if w == m]
    assert said == [marks[n[-4:]] for n in order]  # every sentence, once, in order
    edges = [t for s in found.segments for t in (s.start_s, s.end_s)]
    assert edges == sorted(edges) and edges[-1] <= recording.duration_s
    for segment in found.segments:
        edges = [segment.start_s, *[t for w in segment.words for t in (w.start_s, w.end_s)], segment.end_s]
        assert edges == sorted(edges)
    start, at = 0.0, 0
    starts = [w.start_s for w in found.words if spoken(w.text)[-1:] and spoken(w.text)[-1] in marks.values()]
    for name, audio, pause in zip(order, parts[::2], parts[1::2], strict=True):
        assert start - 0.3 <= starts[at] <= start + audio.duration_s + 0.3, name  # words are where they were said
        start, at = start + audio.duration_s + pause.duration_s, at + 1


def test_streams_segment_by_segment(english, clips):
    recording = Audio.concat([p for clip, _ in clips.values() for p in (clip, Audio.silence(1.0, 16_000))] * 2)
    segments = list(english.stream(recording))
    assert len(segments) >= 5
    assert "".join(s.text for s in segments).lower().count("dashwood") == 2


def test_a_prompt_steers_the_spelling(fast, clips):
    clip = next(a for n, (a, _) in clips.items() if n.endswith("0870"))
    assert "Dashwood" in fast.generate(clip, language="en").text
    steered = fast.generate(clip, language="en", prompt="A letter to Mister Jon Dashwoode.").text
    assert "Dashwoode" in steered


def test_no_words_where_there_are_none(fast, clips):
    rng = np.random.default_rng(0)
    hum = 0.2 * np.sin(2 * np.pi * 100 / 16_000 * np.arange(64_000))
    for samples in (np.zeros(64_000), 0.02 * rng.standard_normal(64_000), hum, np.zeros(1)):
        found = fast.generate(Audio(samples.astype(np.float32), 16_000))
        assert found.text == "" and found.segments == ()
    quiet = Audio.concat([Audio.silence(40.0, 16_000), clips["sense_and_sensibility_01_austen_64kb-0880"][0]])
    found = fast.generate(quiet, language="en")
    assert "young man" in found.text and found.segments[0].start_s > 38


def test_english_only(english, clips):
    clip = clips["sense_and_sensibility_01_austen_64kb-0930"][0]
    found = english.generate(clip, word_times=True)
    assert "amiable himself" in found.text and found.language == "en" and found.words
    with pytest.raises(InvalidInputError, match="English-only"):
        english.generate(clip, language="German")


def test_other_rates_and_translation(fast, clips):
    clip = clips["sense_and_sensibility_01_austen_64kb-0930"][0]
    assert "amiable himself" in fast.generate(clip.resample(44_100), language="en").text
    assert fast.generate(clip, language="en", task="translate").task == "translate"


def test_user_text_never_becomes_a_control_token(fast):
    prompt = fast.tokenize("<|endoftext|><|0.00|>", language="en")
    assert not {50_257} & set(prompt.ids.tolist())
    assert [i for i in prompt.ids.tolist() if i >= 50_257] == [50_361, 50_258, 50_259, 50_359]
