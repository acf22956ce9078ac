"""The decoder's taps: the same on both backends, the attention pattern only when asked for, and replaceable."""

from __future__ import annotations

import numpy as np
import pytest
from decoder_cases import CONFIGS, TOLERANCE, VOCAB, net_of, one_thread, steps, transformers_model, weights_for

from izwi_lab.backends.mlx_backend import MLXBackend
from izwi_lab.backends.torch_backend import TorchBackend
from izwi_lab.families.shared.nets.decoder.config import CONV
from izwi_lab.families.shared.taps import tapping, wanted

__all__ = ["one_thread"]
pytestmark = pytest.mark.usefixtures("one_thread")
BACKENDS = (TorchBackend, lambda: MLXBackend("cpu"))
both = pytest.mark.parametrize("make", BACKENDS, ids=["torch", "mlx"])
IDS = np.random.default_rng(4).integers(0, VOCAB, 300).astype(np.int32)


def seen(backend, net, pieces, patterns="*", replace=None, state=None):
    """Taps of every piece, and the logits."""

    def array(values, like):
        return backend.array(values, dtype=str(like.dtype).rpartition(".")[2])

    with tapping(patterns, numpy=backend.numpy, array=array, replace=replace) as taps:
        logits = steps(backend, net, IDS, pieces, state=state)
    return taps, logits


@pytest.mark.parametrize("name", ["qwen3", "gemma3", "lfm2"])
def test_all_taps_are_equal_on_both_backends_at_every_piece(name):
    pieces = [20, 1, 240, 1, 1, 4]  # a prompt, decoding, over the window, and after a cache has turned
    first, second = (seen(b, net_of(b, name), pieces)[0] for b in (TorchBackend(), MLXBackend("cpu")))
    assert list(first) == list(second)
    kinds = CONFIGS[name].layer_types
    assert {f"layers.{i}.conv" for i, k in enumerate(kinds) if k == CONV} == {n for n in first if n.endswith(".conv")}
    for key, values in first.history.items():
        for a, b in zip(values, second.history[key], strict=True):
            np.testing.assert_allclose(a, b, atol=TOLERANCE, err_msg=key)


@both
@pytest.mark.parametrize("name", ["qwen3", "gemma3", "lfm2"])
def test_patterns_are_probabilities_of_what_is_seen_and_reading_them_changes_nothing(make, name):
    backend, c = make(), CONFIGS[name]
    net, pieces = net_of(backend, name), [30, 1, 230, 1, 1]
    taps, logits = seen(backend, net, pieces, "layers.*.attn.pattern")
    np.testing.assert_allclose(logits, steps(backend, net, IDS, pieces), atol=TOLERANCE)
    assert set(taps) == {f"layers.{i}.attn.pattern" for i, k in enumerate(c.layer_types) if k != CONV}
    for key, values in taps.history.items():
        window = c.window_of(int(key.split(".")[1]))
        for start, pattern in zip(np.cumsum([0, *pieces]), values, strict=False):
            T = pattern.shape[2]
            first = max(0, start + 1 - window) if window else 0
            assert pattern.shape == (1, c.num_heads, T, start + T - first)
            np.testing.assert_allclose(pattern.sum(-1), 1, atol=1e-5)
            queries, keys = np.arange(start, start + T)[:, None], np.arange(first, start + T)
            hidden = (keys > queries) | ((keys <= queries - window) if window else False)
            assert not pattern[0][:, hidden].any() and pattern[0][:, ~hidden].all()


def test_patterns_equal_transformers():
    torch = pytest.importorskip("torch")
    weights, ids = weights_for("qwen3"), IDS[:40]
    oracle = transformers_model("qwen3")
    oracle.set_attn_implementation("eager")
    oracle.load_state_dict({k: torch.from_numpy(w.data) for k, w in weights.items()}, strict=False)
    oracle.tie_weights()
    with torch.no_grad():
        expected = oracle(torch.from_numpy(ids[None].astype(np.int64)), output_attentions=True).attentions
    taps, _ = seen(TorchBackend(), net_of(TorchBackend(), "qwen3", weights), [40], "*.pattern")
    for layer, pattern in enumerate(expected):
        np.testing.assert_allclose(taps[f"layers.{layer}.attn.pattern"], pattern.numpy(), atol=1e-4)


@both
@pytest.mark.parametrize("name", ["qwen3", "gemma3"])
@pytest.mark.parametrize("pieces", [[30], [29, 1], [280, 1]])
def test_a_replaced_pattern_changes_what_follows(make, name, pieces):
    backend = make()
    net, key = net_of(backend, name), "layers.1.attn.pattern"

    def knocked_out(name, value):
        return np.where(np.arange(value.shape[1])[:, None, None] == 2, 0, value) if name == key else value

    same, plain = seen(backend, net, pieces, [key, "layers.1.attn"], lambda name, value: value)
    np.testing.assert_allclose(plain, steps(backend, net, IDS, pieces), atol=TOLERANCE)
    other, changed = seen(
        backend, net, pieces, [key, "layers.1.attn"], lambda n, v: knocked_out(n, v) if n == key else v
    )
    assert not other[key][:, 2].any() and other[key][:, 1].any()
    assert np.abs(changed - plain).max() > 10 * TOLERANCE
    assert np.abs(other["layers.1.attn"] - same["layers.1.attn"]).max() > 10 * TOLERANCE


@both
def test_other_taps_do_not_compute_the_pattern(make):
    backend = make()
    taps, _ = seen(backend, net_of(backend, "qwen3"), [10], ["layers.*.mlp", "layers.?.attn"])
    assert not any(n.endswith("pattern") for n in taps) and "layers.0.attn" in taps
    assert not wanted("layers.0.attn.pattern")
