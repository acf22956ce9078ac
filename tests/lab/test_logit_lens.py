"""Logit lens: what each layer would say, and that the last one is the model itself."""

import numpy as np
import pytest
from lab_models import CONFIG, TOKENS, tiny

import izwi_lab as izwi
from izwi_lab.errors import InvalidInputError, MissingExtraError
from izwi_lab.families.shared.steps import Prompt

TEXT = "the tin tooth"


def softmax(x):
    e = np.exp(x - x.max(axis=-1, keepdims=True))
    return e / e.sum(axis=-1, keepdims=True)


def test_the_last_layer_says_what_the_model_says(model):
    prompt = model.tokenize(TEXT, template=False)
    step = model.prefill(model.session(), prompt)
    lens = izwi.lab.logit_lens(model, prompt, k=4)
    assert lens.layers == ("embed", "layers.0", "layers.1", "layers.2", "norm")
    wanted = step.numpy().astype(np.float64)
    best = np.argsort(-wanted)[:4]
    for layer in ("layers.2", "norm"):
        found = lens.top(layer)
        assert [t.id for t in found] == best.tolist()
        np.testing.assert_allclose([t.probability for t in found], softmax(wanted)[best], rtol=1e-4)
    assert lens.top("embed") != lens.top("norm")


def test_every_position_is_the_last_of_a_shorter_prompt(model):
    prompt = model.tokenize(TEXT, template=False)
    lens = izwi.lab.logit_lens(model, prompt, k=2, positions="all")
    assert lens.ids.shape == lens.probabilities.shape == (5, len(prompt), 2)
    for position in range(len(prompt)):
        shorter = izwi.lab.logit_lens(model, Prompt(ids=prompt.ids[: position + 1]), k=2)
        np.testing.assert_allclose(lens.probabilities[:, position], shorter.probabilities[:, 0], rtol=2e-4)
    some = izwi.lab.logit_lens(model, prompt, k=2, positions=[1, -1])
    assert some.positions == (1, len(prompt) - 1)
    np.testing.assert_array_equal(some.ids, lens.ids[:, [1, -1]])


def test_all_tokens_make_one(model):
    lens = izwi.lab.logit_lens(model, TEXT, k=len(TOKENS))
    np.testing.assert_allclose(lens.probabilities.sum(axis=-1), 1.0, rtol=1e-4)
    assert (np.diff(lens.probabilities, axis=-1) <= 1e-7).all(), "likeliest first"


def test_a_long_prompt_is_read_in_pieces_and_looked_at_whole():
    model = tiny("torch")
    ids = (np.arange(520, dtype=np.int32) * 7) % len(TOKENS)  # more than one piece of prefill
    lens = izwi.lab.logit_lens(model, Prompt(ids=ids), k=3, positions=[3, 519])
    np.testing.assert_array_equal(lens.ids[:, 0], izwi.lab.logit_lens(model, Prompt(ids=ids[:4]), k=3).ids[:, 0])
    step = model.prefill(model.session(), Prompt(ids=ids))
    assert lens.top("norm", 519)[0].id == step.top(1)[0][0]


def test_read_out_takes_any_shape(model):
    stream = np.random.default_rng(0).standard_normal((2, 3, CONFIG.hidden_size)).astype(np.float32)
    logits = model.read_out(stream)
    assert logits.shape == (2, 3, CONFIG.vocab_size)
    np.testing.assert_allclose(model.read_out(stream[1, 2]), logits[1, 2], rtol=1e-4, atol=1e-5)
    assert not np.allclose(model.read_out(stream, normed=True), logits)


def test_labels_are_readable():
    from izwi_lab.lab.labels import labels

    model = tiny("torch")
    half = TOKENS.index("Ã")  # the first byte of a two-byte character
    ids = [TOKENS.index("Ġt"), TOKENS.index("Ċ"), half, 0]
    assert labels(model, ids) == ("\u00b7t", "\u23ce", "<C3>", "<|end|>")
    assert labels(tiny("torch", words=False), [3, 4]) == ("3", "4")


def test_tables_and_plots_show_tokens(model):
    pytest.importorskip("pandas")
    one = izwi.lab.logit_lens(model, TEXT, k=3).table()
    assert one.shape == (5, 3) and list(one.columns) == ["1", "2", "3"]
    lens = izwi.lab.logit_lens(model, TEXT, positions="all")
    many = lens.table()
    assert list(many.columns)[1] == f"1 {lens.tokens[1]}"
    assert all(cell.endswith("%") for cell in many.to_numpy().ravel())
    axis, bar = lens.plot().axes
    assert [t.get_text() for t in axis.get_yticklabels()] == list(lens.layers)
    assert len(axis.texts) == lens.ids[:, :, 0].size
    assert bar.get_ylabel() == "probability of the token"
    assert "says" in repr(lens)


def test_what_cannot_be_shown_is_refused(model):
    for options in ({"k": 0}, {"k": 10**6}, {"positions": "first"}, {"positions": []}, {"positions": [99]}):
        with pytest.raises(InvalidInputError):
            izwi.lab.logit_lens(model, TEXT, **options)
    lens = izwi.lab.logit_lens(model, TEXT)
    with pytest.raises(InvalidInputError, match=r"layers\.9"):
        lens.top("layers.9")
    with pytest.raises(InvalidInputError, match="not looked at"):
        lens.top("norm", 0)


@pytest.mark.parametrize("package", ["pandas", "matplotlib"])
def test_without_the_package_the_error_names_the_extra(package, model, monkeypatch):
    import sys

    lens = izwi.lab.logit_lens(model, TEXT)
    monkeypatch.setitem(sys.modules, package, None)
    if package == "matplotlib":
        monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(MissingExtraError, match=rf"{package}.*izwi-lab\[lab\]"):
        lens.table() if package == "pandas" else lens.plot()
