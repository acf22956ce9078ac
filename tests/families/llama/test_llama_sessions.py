"""Sessions of text models where things go wrong: other models, other dtypes, a cancelled prefill; GGUF's rope."""

from __future__ import annotations

import json

import numpy as np
import pytest
from tiny_llama import TOKENS, open_model

from izwi_lab import catalog
from izwi_lab.artifacts.tensors import Tensor
from izwi_lab.backends import native
from izwi_lab.backends.mlx_backend import MLXBackend
from izwi_lab.backends.torch_backend import TorchBackend
from izwi_lab.cancel import CancelToken
from izwi_lab.errors import Cancelled, CheckpointError, InvalidInputError
from izwi_lab.families.llama.config import from_gguf
from izwi_lab.families.llama.weights import gguf_rules
from izwi_lab.families.shared.nets.decoder.config import rope
from izwi_lab.families.shared.steps import Prompt

IDS = Prompt(np.arange(5, 45, dtype=np.int32))
OPENERS = {
    "mlx32": lambda: MLXBackend("cpu", "float32"),
    "mlx16": lambda: MLXBackend("cpu", "bfloat16"),
    "torch32": lambda: TorchBackend("cpu", "float32"),
    "torch16": lambda: TorchBackend("cpu", "bfloat16"),
}


@pytest.fixture(scope="module")
def opened(hf_folder):
    assert native.library("decoder", wait=True) is not None, native.status()
    return {name: open_model(hf_folder, "hf", make()) for name, make in OPENERS.items()}


@pytest.mark.parametrize(("source", "target"), [("mlx32", "torch16"), ("torch16", "mlx32"), ("torch32", "mlx16")])
def test_a_saved_session_goes_on_in_another_dtype(opened, tmp_path, source, target):
    one, other = opened[source], opened[target]
    session = one.session()
    one.prefill(session, IDS)
    session.save(tmp_path / "s")
    expected = one.decode(session, 9).numpy()
    loaded = other.session()
    loaded.load(tmp_path / "s")
    assert np.abs(other.decode(loaded, 9).numpy() - expected).max() < 0.06 * np.abs(expected).max()
    assert np.isfinite(other.prefill(loaded, Prompt(IDS.ids[:3])).numpy()).all()


def test_a_session_of_another_model_is_refused(opened, tmp_path, monkeypatch):
    sizes = {"num_hidden_layers": 1, "vocab_size": 512, "max_position_embeddings": 256}
    small = {**catalog.config(catalog.get("SmolLM2-135M-Instruct")), **sizes}
    monkeypatch.setattr("izwi_lab.catalog.config", lambda _: small)
    foreign = open_model(None, "hf", load_format="dummy")
    session = foreign.session()
    foreign.prefill(session, IDS)
    session.save(tmp_path / "s")
    for model in opened.values():
        mine = model.session(seed=4)
        with pytest.raises(CheckpointError, match="another model"):
            mine.load(tmp_path / "s")
        assert mine.position == 0 and mine.seed == 4 and mine.state["k"] == []  # nothing was half taken over


def test_a_session_file_with_a_wrong_length_is_refused(opened, tmp_path):
    from safetensors import safe_open
    from safetensors.numpy import save_file

    model = opened["torch32"]
    session = model.session()
    model.prefill(session, IDS)
    session.save(tmp_path / "s")
    with safe_open(tmp_path / "s", framework="numpy") as file:
        metadata, arrays = file.metadata(), {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    for length in (-1, 10_000, 2.5):
        notes = json.loads(metadata["session"])
        notes["state"]["map"]["length"]["value"] = length
        save_file(arrays, tmp_path / "t", metadata={**metadata, "session": json.dumps(notes)})
        with pytest.raises(CheckpointError):
            model.session().load(tmp_path / "t")
    save_file(arrays, tmp_path / "t", metadata={**metadata, "session": '{"state": 3}'})
    with pytest.raises(CheckpointError, match="Cannot read"):
        model.session().load(tmp_path / "t")


class _Second(CancelToken):
    """Cancels at the second check."""

    checks = 0

    def check(self) -> None:
        self.checks += 1
        if self.checks > 1:
            raise Cancelled("enough")


def test_a_cancelled_prefill_leaves_the_session_as_it_was(opened, monkeypatch):
    monkeypatch.setattr("izwi_lab.families.shared.text_model.PREFILL_CHUNK", 16)
    for name in ("torch32", "mlx32"):
        model = opened[name]
        expected = model.prefill(model.session(), IDS).numpy()
        session = model.session()
        with pytest.raises(Cancelled):
            model.prefill(session, IDS, cancel=_Second())
        assert session.position == 0 and session.prompt_ids == []
        np.testing.assert_allclose(model.prefill(session, IDS).numpy(), expected, atol=1e-4)
        assert session.position == len(IDS)


def test_a_stop_text_instead_of_a_list_is_refused(opened):
    with pytest.raises(InvalidInputError, match=r"stop=\['END'\]"):
        opened["torch32"].generate("Hi.", stop="END")


def test_numpy_tokens_can_be_decoded_and_saved(opened, tmp_path):
    model = opened["torch32"]
    session = model.session()
    step = model.prefill(session, IDS)
    model.decode(session, step.numpy().argmax())
    session.save(tmp_path / "s")
    with pytest.raises(InvalidInputError, match="trim"):
        session.trim(10_000)


METADATA = {
    "general.architecture": "llama",
    "llama.attention.head_count": 4,
    "llama.embedding_length": 64,
    "llama.feed_forward_length": 96,
    "llama.block_count": 2,
    "llama.context_length": 128,
    "llama.attention.layer_norm_rms_epsilon": 1e-5,
}


def frequencies(factors=(), **more):
    config = from_gguf({**METADATA, **more}, vocab_size=len(TOKENS), tied=True, rope_factors=factors)
    return np.array(dict(config.ropes)["full_attention"].inv_freq)


def test_gguf_rope_factors_and_scaling_are_honoured():
    plain = np.array(rope(16, 10_000.0).inv_freq)
    factors = np.linspace(1, 8, 8)
    np.testing.assert_allclose(frequencies(factors), plain / factors)  # Llama 3.1 files carry them as a tensor
    np.testing.assert_allclose(frequencies(**{"llama.rope.scaling.factor": 4.0}), plain / 4)
    unscaled = {"llama.rope.scaling.factor": 4.0, "llama.rope.scaling.type": "none"}
    np.testing.assert_allclose(frequencies(**unscaled), plain)
    with pytest.raises(CheckpointError, match="'yarn'"):
        frequencies(**{"llama.rope.scaling.type": "yarn"})
    with pytest.raises(CheckpointError, match="rope_freqs"):
        frequencies([1.0, 2.0])


def test_rows_that_are_not_heads_times_width_are_named():
    config = from_gguf(METADATA, vocab_size=len(TOKENS), tied=True)
    changes = {r.pattern: r.change for r in gguf_rules(config) if r.change is not None}
    whole = np.arange(64, dtype=np.float32)[:, None]
    for part in ("q", "k"):
        change = changes[rf"blk\.(\d+)\.attn_{part}\.weight"]
        assert change(Tensor.of(whole)).data[:3, 0].tolist() == [0, 2, 4]
        with pytest.raises(CheckpointError, match="32 rows, expected 64"):
            change(Tensor.of(whole[:32]))


def test_rope_factors_are_read_from_the_file(gguf_folder, tmp_path, monkeypatch):
    from izwi_lab.families.shared import text_loader

    asked = text_loader.open_checkpoint

    def with_factors(folder, layout):
        held = asked(folder, layout)
        read, names = held.read, tuple(held.names)
        given = Tensor.of(np.full(8, 2.0, np.float32))
        stand_in = type("Held", (), {"names": (*names, "rope_freqs.weight"), "config": held.config, "path": held.path})
        stand_in.read = staticmethod(lambda n: given if n == "rope_freqs.weight" else read(n))
        stand_in.shape, stand_in.close = staticmethod(held.shape), staticmethod(held.close)
        return stand_in

    monkeypatch.setattr(text_loader, "open_checkpoint", with_factors)
    model = open_model(gguf_folder, "gguf")
    found = dict(model.config.ropes)["full_attention"].inv_freq
    np.testing.assert_allclose(found, np.array(rope(16, 10_000.0).inv_freq) / 2)
