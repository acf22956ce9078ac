"""Whisper's rules, prompts, features and alignment, without a net."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from izwi_lab.errors import CheckpointError, InvalidInputError
from izwi_lab.families.shared.mel import mel_filters, whisper_log_mel
from izwi_lab.families.whisper.config import GenerationConfig, WhisperConfig
from izwi_lab.families.whisper.languages import LANGUAGES, language_code
from izwi_lab.families.whisper.processor import ControlTokens, WhisperProcessor
from izwi_lab.families.whisper.rules import Guards, Rules, compression_ratio
from izwi_lab.families.whisper.words import attention_path, dtw, median_filter, merge_punctuation

SIZES = dict(
    d_model=64,
    encoder_layers=2,
    decoder_layers=2,
    encoder_attention_heads=4,
    decoder_attention_heads=4,
    encoder_ffn_dim=128,
    decoder_ffn_dim=128,
)


def config(vocab: int = 51_865) -> WhisperConfig:
    return WhisperConfig(vocab_size=vocab, **SIZES)


@pytest.mark.parametrize(
    ("vocab", "end", "start", "transcribe", "first_timestamp", "languages"),
    [(51_864, 50_256, 50_257, 50_358, 50_363, 99), (51_865, 50_257, 50_258, 50_359, 50_364, 99),
     (51_866, 50_257, 50_258, 50_360, 50_365, 100)],
)  # fmt: skip
def test_control_tokens(vocab, end, start, transcribe, first_timestamp, languages):
    t = ControlTokens.of(config(vocab))
    assert (t.end, t.start, t.transcribe, t.first_timestamp) == (end, start, transcribe, first_timestamp)
    assert len(t.languages) == languages
    assert vocab - t.first_timestamp == 1501


def test_language_names_and_codes():
    assert language_code("English", 99) == language_code("en-US", 99) == language_code(" EN ", 99) == "en"
    assert language_code("castilian", 99) == "es"
    assert language_code("yue", 100) == "yue"
    with pytest.raises(InvalidInputError, match=r"Unknown language 'Klingon'.*en, zh, de"):
        language_code("Klingon", 99)
    with pytest.raises(InvalidInputError):
        language_code("cantonese", 99)  # only in the vocabulary of large-v3
    assert len(LANGUAGES) == 100


def test_prompts():
    multi, english = WhisperProcessor(config(), None), WhisperProcessor(config(51_864), None)
    ask = dict(task="transcribe", timestamps=True, text=None)
    assert multi.prompt(language="en", **ask).ids.tolist() == [50_258, 50_259, 50_359]
    spoken = multi.prompt(language="de", task="translate", timestamps=False, text=None)
    assert spoken.ids.tolist() == [50_258, 50_261, 50_358, 50_363]
    assert "".join(spoken.pieces) == "<|startoftranscript|><|de|><|translate|><|notimestamps|>"
    assert english.prompt(language="en", **ask).ids.tolist() == [50_257]
    after = multi.prompt(language="en", **ask, previous=list(range(400)))
    assert after.ids[0] == 50_361 and len(after) == 1 + 223 + 3
    assert after.ids[1:224].tolist() == list(range(177, 400))
    assert [s.name for s in after.spans] == ["previous", "control"]


def test_english_models_refuse_other_work():
    english = WhisperProcessor(config(51_864), None)
    assert english.language(None, "transcribe") == english.language("English", "transcribe") == "en"
    for language, task in (("de", "transcribe"), (None, "translate")):
        with pytest.raises(InvalidInputError, match="English-only"):
            english.language(language, task)
    with pytest.raises(InvalidInputError, match="Unknown task"):
        english.language(None, "summarise")


def rules(timestamps: bool = True) -> Rules:
    settings_ = GenerationConfig((1, 2), (220, 50_257), ())
    return Rules.of(ControlTokens.of(config()), settings_, timestamps=timestamps)


def allowed(said: list[int], timestamps: bool = True, boost: int | None = None) -> np.ndarray:
    logits = np.zeros(51_865, np.float32)
    if boost is not None:
        logits[boost] = 20.0
    z, total = rules(timestamps).apply(logits, said)
    assert np.isclose(total, np.log(np.exp(z[np.isfinite(z)].astype(np.float64)).sum()), atol=1e-3)
    return np.flatnonzero(np.isfinite(z))


def test_rules_of_time():
    begin = 50_364
    assert allowed([]).min() == begin and allowed([]).max() == begin + 50  # opens with a time in the first second
    word = 500
    assert begin not in allowed([begin], boost=word)  # text follows the opening time
    closing = allowed([begin, word], boost=begin + 100)
    assert closing.min() == begin + 1  # never empty, never backwards
    pair = allowed([begin, word, begin + 100])
    assert set(pair[pair < begin]) <= {50_257}  # a closed segment is followed by a time or the end
    assert pair[pair >= begin].min() == begin + 100
    assert allowed([begin, word, begin + 100, begin + 100], boost=word).max() < begin


def test_rules_without_times():
    first = allowed([], timestamps=False)
    assert not {1, 2, 220, 50_257, 50_258, 50_358, 50_359, 50_362} & set(first.tolist())
    assert {220, 50_257} <= set(allowed([500], timestamps=False).tolist())


def test_time_wins_when_it_is_likelier_as_a_whole():
    logits = np.full(51_865, -20.0, np.float32)
    logits[500] = 1.0
    logits[50_364 + 10 : 50_364 + 60] = 0.0  # 50 times of e^0 against one word of e^1
    z, _ = rules().apply(logits, [50_364, 400])
    assert not np.isfinite(z[500])
    logits[50_364 + 10 : 50_364 + 60] = -5.0
    z, _ = rules().apply(logits, [50_364, 400])
    assert np.isfinite(z[500])


def test_guards():
    g = Guards()
    assert g.distrusts(3.0, -0.1, 0.0) and g.distrusts(1.0, -1.5, 0.1)
    assert not g.distrusts(1.0, -0.5, 0.9) and not g.distrusts(5.0, -1.5, 0.9)
    assert g.silent(-1.5, 0.9) and not g.silent(-0.2, 0.9)
    assert g.from_temperature(0.0) == (0.0, 0.2, 0.4, 0.6, 0.8, 1.0)
    assert g.from_temperature(0.5) == (0.5, 0.6, 0.8, 1.0)
    assert compression_ratio("la " * 100) > 10 > 2 > compression_ratio("The quick brown fox.")
    assert compression_ratio("") == 0.0


def test_config_is_checked():
    with pytest.raises(CheckpointError, match="lacks vocab_size"):
        WhisperConfig.from_hf({"d_model": 64})
    with pytest.raises(CheckpointError, match="d_model is 'wide'"):
        WhisperConfig.from_hf({"vocab_size": 51_865, **SIZES, "d_model": "wide"})
    with pytest.raises(CheckpointError, match="does not divide"):
        WhisperConfig(vocab_size=51_865, **{**SIZES, "d_model": 66})
    with pytest.raises(CheckpointError, match="suppress_tokens"):
        GenerationConfig.of(config(), [99_999], None, None)
    with pytest.raises(CheckpointError, match="alignment head"):
        GenerationConfig.of(config(), None, None, [[9, 0]]).heads(config())
    assert GenerationConfig().heads(config()) == tuple((1, h) for h in range(4))


@pytest.mark.parametrize("bins", [80, 128])
def test_mel_equals_transformers(bins):
    from transformers import WhisperFeatureExtractor

    reference = WhisperFeatureExtractor(feature_size=bins)
    rng = np.random.default_rng(0)
    for size in (1, 100, 201, 16_077, 479_850, 479_999, 480_000):
        x = (rng.standard_normal(size) * 0.1).astype(np.float32)
        expected = reference(x, sampling_rate=16_000, return_tensors="np").input_features[0]
        found = whisper_log_mel(x, bins, frames=3000)
        assert found.shape == (bins, 3000) and found.dtype == np.float32
        assert np.abs(found - expected).max() < 1e-4, size
    assert whisper_log_mel(np.zeros(1600, np.float32), bins).shape == (bins, 10)
    assert mel_filters(bins).shape == (201, bins)


def brute_dtw(cost):
    rows, columns = cost.shape
    best = np.full((rows, columns), np.inf)
    best[0, 0] = cost[0, 0]
    for i in range(rows):
        for j in range(columns):
            if i or j:
                before = [best[a, b] for a, b in ((i - 1, j - 1), (i - 1, j), (i, j - 1)) if a >= 0 and b >= 0]
                best[i, j] = cost[i, j] + min(before)
    return best[-1, -1]


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 9), st.integers(1, 14), st.integers(0, 2**31))
def test_dtw_is_the_cheapest_monotone_path(rows, columns, seed):
    cost = np.random.default_rng(seed).standard_normal((rows, columns))
    i, j = dtw(cost)
    assert (i[0], j[0], i[-1], j[-1]) == (0, 0, rows - 1, columns - 1)
    steps = {(int(a), int(b)) for a, b in zip(np.diff(i), np.diff(j), strict=True)}
    assert steps <= {(1, 1), (1, 0), (0, 1)}
    assert cost[i, j].sum() == pytest.approx(brute_dtw(cost))


def test_median_filter_and_path():
    x = np.array([[0, 9, 1, 2, 3, 4, 5]], float)
    np.testing.assert_array_equal(median_filter(x, 3)[0, 1:-1], [1, 2, 2, 3, 4])
    scores = np.full((2, 5, 100), -8.0)
    for token in range(5):
        scores[:, token, 20 * token : 20 * token + 20] = 8.0
    times = attention_path(scores, 100, slice(0, 5))
    np.testing.assert_allclose(times, [0, 0.4, 0.8, 1.2, 1.6], atol=0.08)


def test_punctuation_joins_its_word():
    groups = [(" He", [1]), (" said", [2]), (",", [3]), (' "', [4]), ("no", [5]), ("!", [6]), ('"', [7])]
    assert merge_punctuation(groups) == [(" He", [1]), (" said,", [2, 3]), (' "no!"', [4, 5, 6, 7])]
