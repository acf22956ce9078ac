"""Every text family through its own loader, from every layout, against transformers and mlx-lm, on both backends.

Logits after a prompt of 240 tokens and each of 32 more: over the sliding window, past a cache bucket and a ring.
"""

from __future__ import annotations

import shutil

import numpy as np
import pytest
from family_checkpoints import (
    CASES,
    IDS,
    MLX_LM,
    PREFILL,
    both_backends,
    expected_logits,
    open_family,
    step_logits,
    write_folder,
)
from tiny_quantised import KINDS, mlx_lm_logits, write_gguf, write_mlx

from izwi_lab.artifacts.local_model import detect_layout
from izwi_lab.backends import native
from izwi_lab.backends.torch_backend import TorchBackend
from izwi_lab.families.shared.steps import Prompt

TOLERANCE = 2e-4  # absolute, on logits of size 7 to 18
QUANTISED = 0.01  # of the largest logit: the compiled kernels round activations to 16 bits
FAMILIES = ("llama", "qwen3", "gemma3", "lfm2")


@pytest.fixture(scope="module", autouse=True)
def compiled():
    assert native.library("decoder", wait=True) is not None, native.status()


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Folders by case, each written once; those of older configs are sharded."""
    made = {}

    def folder(name):
        if name not in made:
            sharded = name.endswith(("old", "untied"))
            made[name] = write_folder(tmp_path_factory.mktemp(name), name, shard="100KB" if sharded else None)
        return made[name]

    return folder


@pytest.mark.parametrize("name", CASES)
def test_official_folders_equal_transformers(folders, name):
    import transformers as tf

    folder = folders(name)
    images = name.startswith("gemma3-images")
    oracle = (tf.Gemma3ForConditionalGeneration if images else tf.AutoModelForCausalLM).from_pretrained(folder).float()
    expected = expected_logits(oracle.eval())[PREFILL - 1 :]
    assert np.abs(expected).max() > 5
    for backend in both_backends():
        np.testing.assert_allclose(step_logits(open_family(name, folder, backend)), expected, atol=TOLERANCE)


SHORT = IDS[: PREFILL + 8]


@pytest.mark.parametrize("name", MLX_LM)
def test_official_folders_equal_mlx_lm(folders, name):
    from mlx_lm.utils import load_model

    expected = mlx_lm_logits(load_model(folders(name))[0], SHORT)[PREFILL - 1 :]
    np.testing.assert_allclose(step_logits(open_family(name, folders(name)), SHORT), expected, atol=TOLERANCE)


@pytest.mark.parametrize(("bits", "group_size"), [(4, 64), (8, 32)])
@pytest.mark.parametrize("name", MLX_LM)
def test_mlx_folders_equal_mlx_lm(folders, name, bits, group_size, tmp_path):
    theirs = write_mlx(folders(name), tmp_path, bits=bits, group_size=group_size)
    expected = mlx_lm_logits(theirs, SHORT)[PREFILL - 1 :]
    size = np.abs(expected).max()
    shutil.copy(folders(name) / "tokenizer.json", tmp_path)
    assert detect_layout(tmp_path) == "mlx"
    for backend in both_backends():
        model = open_family(name, tmp_path, backend)
        near = TOLERANCE if backend.name == "mlx" else QUANTISED * size
        np.testing.assert_allclose(step_logits(model, SHORT), expected, atol=near)
        assert model.nbytes < (0.5 if bits == 8 else 0.32) * 4 * _values(model.config)


def test_unquantised_mlx_files_are_known_by_their_mark(folders, tmp_path):
    from mlx_lm.utils import load_model, save_config, save_model

    theirs, config = load_model(folders("lfm2-old"))
    save_model(tmp_path, theirs)  # its convolutions have MLX's axes, and config.json says nothing of it
    save_config(config, tmp_path / "config.json")
    shutil.copy(folders("lfm2-old") / "tokenizer.json", tmp_path)
    assert detect_layout(tmp_path) == "hf"
    ours = step_logits(open_family("lfm2-old", tmp_path), SHORT)
    np.testing.assert_allclose(ours, step_logits(open_family("lfm2-old", folders("lfm2-old")), SHORT), atol=1e-6)


def _values(config) -> int:
    from izwi_lab.families.shared.dummy_weights import shapes

    return sum(int(np.prod(s)) for s in shapes(config).values())


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", FAMILIES)
def test_gguf_files_equal_transformers_on_their_weights(name, kind, tmp_path):
    expected = expected_logits(write_gguf(tmp_path, name, kind), SHORT)[PREFILL - 1 :]
    size = np.abs(expected).max()
    assert size > 1
    for backend in both_backends():
        model = open_family(name, tmp_path, backend)
        dense = kind in ("F16", "BF16")
        near = TOLERANCE if dense else QUANTISED * size
        np.testing.assert_allclose(step_logits(model, SHORT), expected, atol=near)
        assert model.text_processor().stop_ids >= {2}


@pytest.mark.parametrize("name", FAMILIES)
def test_backends_agree_on_parameters_and_taps(folders, name):
    from izwi_lab.families.shared.dummy_weights import shapes

    specs, seen = [], []
    for backend in both_backends():
        model = open_family(name, folders(name), backend)
        specs.append(backend.parameters(model.net))
        with model.tap("*") as taps:
            model.prefill(model.session(), Prompt(IDS[:20]))
        seen.append(dict(taps))
    assert specs[0] == specs[1] == shapes(model.config)
    assert list(seen[0]) == list(seen[1])
    layers = model.config.num_layers
    assert {"embed", "norm", "logits", f"layers.{layers - 1}.mlp"} <= set(seen[0])
    for key, value in seen[0].items():
        np.testing.assert_allclose(value, seen[1][key], atol=TOLERANCE, err_msg=key)


@pytest.mark.parametrize("name", FAMILIES)
def test_step_by_step_equals_whole(folders, name):
    model = open_family(name, folders(name), TorchBackend())
    ids = IDS[:140]
    whole = model.prefill(model.session(), Prompt(ids)).numpy()
    for prefill in (1, 100, 139):
        np.testing.assert_allclose(step_logits(model, ids, prefill)[-1], whole, atol=TOLERANCE)


@pytest.mark.parametrize("name", FAMILIES)
def test_generate_and_stream_are_the_loop_over_the_verbs(folders, name):
    model = open_family(name, folders(name))
    session = model.session(seed=1, max_tokens=12)
    step = model.prefill(session, model.tokenize("Say it."))
    while not session.done:
        step = model.decode(session, model.sample(session, step))
    reply = model.generate("Say it.", max_tokens=12, seed=1)
    assert list(reply.tokens) == session.tokens
    streamed = list(model.stream("Say it.", max_tokens=12, seed=1))
    assert [d.token for d in streamed if d.token is not None] == session.tokens
    assert "".join(d.text for d in streamed) == reply.text
