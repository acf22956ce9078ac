"""Attention patterns and caches: causal, within the window, rows of one."""

import numpy as np
import pytest
from lab_models import CONFIG, TOKENS, WINDOW, tiny

import izwi_lab as izwi
from izwi_lab.errors import InvalidInputError
from izwi_lab.families.shared.steps import Prompt

TEXT = "the tin tooth on the tongue"


def numbers(length: int) -> Prompt:
    return Prompt(ids=(np.arange(length, dtype=np.int32) * 11) % len(TOKENS))


@pytest.mark.parametrize("length", [5, 40, 530])
def test_rows_sum_to_one_and_look_only_back(model, length):
    found = izwi.lab.attention(model, numbers(length))
    assert sorted(found) == [0, 1], "a convolution looks at nothing"
    later = np.triu(np.ones((length, length), bool), 1)
    for pattern in found.values():
        assert pattern.shape == (CONFIG.num_heads, length, length)
        np.testing.assert_allclose(pattern.sum(axis=-1), 1.0, rtol=1e-4)
        assert not pattern[:, later].any()
    behind = np.tril(np.ones((length, length), bool), -WINDOW)
    assert not found[0][:, behind].any(), "a sliding layer sees its window only"
    assert (found[0][:, ~later & ~behind] > 0).all()
    assert (found[1][:, ~later] > 0).all(), "a full layer sees everything before"


def test_both_backends_look_at_the_same(model):
    other = izwi.lab.attention(tiny("torch"), numbers(20))
    for layer, pattern in izwi.lab.attention(model, numbers(20)).items():
        np.testing.assert_allclose(pattern, other[layer], atol=2e-5)


def test_layers_can_be_chosen_and_unknown_ones_are_refused(model):
    assert list(izwi.lab.attention(model, TEXT, layers=[1])) == [1]
    assert list(izwi.lab.attention(model, TEXT, layers=1)) == [1]
    for wrong in ([2], [7], [], 2, "1", True, [0.5]):
        with pytest.raises(InvalidInputError, match=r"\[0, 1\]"):
            izwi.lab.attention(model, TEXT, layers=wrong)
    found = izwi.lab.attention(model, TEXT)
    with pytest.raises(InvalidInputError, match="no pattern of layer 2"):
        found.plot(2)
    with pytest.raises(InvalidInputError, match="0 to 3"):
        found.table(1, head=4)


def test_tables_and_plots_are_of_the_pattern(model):
    pytest.importorskip("pandas")
    found = izwi.lab.attention(model, TEXT)
    table = found.table(1, head=2)
    np.testing.assert_array_equal(table.to_numpy(), found[1][2])
    assert table.index[1] == f"1 {found.tokens[1]}"
    np.testing.assert_allclose(found.table(1).to_numpy(), found[1].mean(axis=0))
    shown = found.plot(1, head=2).axes[0]
    np.testing.assert_array_equal(shown.images[0].get_array(), found[1][2])
    assert shown.get_title() == "layer 1, head 2"
    assert repr(found) == f"AttentionPatterns(2 layers, 4 heads, {len(found.tokens)} tokens)"


@pytest.mark.parametrize("kv_dtype", [None, "int8"])
def test_the_cache_table_adds_up(model, kv_dtype):
    pytest.importorskip("pandas")
    session = model.session(kv_dtype=kv_dtype)
    assert izwi.lab.cache_table(model, session)["bytes"].sum() == session.nbytes == 0
    model.prefill(session, numbers(400))
    table = izwi.lab.cache_table(model, session).set_index("kind")
    assert table["bytes"].sum() == session.nbytes > 0
    assert table["layers"].to_dict() == {"sliding_attention": 1, "full_attention": 1, "conv": 1}
    assert table.loc["sliding_attention", "held"] == table.loc["sliding_attention", "ring"] == 256
    assert table.loc["full_attention", "held"] == 400 <= table.loc["full_attention", "capacity"]
    assert table.loc["full_attention", "dtype"] == (kv_dtype or "float32")
