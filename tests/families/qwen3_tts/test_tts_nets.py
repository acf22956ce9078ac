"""Talker and code predictor against the vendor's modules, torch against MLX, taps, and checkpoints that do not fit."""

from __future__ import annotations

import numpy as np
import pytest
import tiny_tts
import torch
import vendor_qwen_tts  # noqa: F401 - makes qwen_tts importable
from qwen_tts.core.models import Qwen3TTSConfig
from qwen_tts.core.models.modeling_qwen3_tts import Qwen3TTSTalkerForConditionalGeneration
from tts_nets import CASES, checkpoint, greedy, net_of

from izwi_lab.artifacts.checkpoint import open_checkpoint
from izwi_lab.backends.mlx_backend import MLXBackend
from izwi_lab.backends.torch_backend import TorchBackend
from izwi_lab.errors import CheckpointError
from izwi_lab.families.qwen3_tts import weights
from izwi_lab.families.qwen3_tts.config import TTSConfig
from izwi_lab.families.shared.taps import tapping
from izwi_lab.families.shared.weights import Renamed

FRAMES = 14
TOLERANCE = 5e-4  # of float32 logits of up to 10
RNG = np.random.default_rng(4)
TEXT, CODEC = RNG.integers(0, 272, 23), RNG.integers(0, 1088, 23)
pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module", params=CASES)
def case(request, tmp_path_factory):
    """(folder, config, the vendor's talker with the same weights)."""
    kind, projected = CASES[request.param]
    folder = tiny_tts.write(tmp_path_factory.mktemp(request.param), kind, projected=projected)
    values = tiny_tts.config(kind, projected=projected)
    told = {k: v for k, v in values.items() if k != "model_type"}
    vendor = Qwen3TTSTalkerForConditionalGeneration(Qwen3TTSConfig(**told).talker_config).eval()
    given = {n: torch.from_numpy(w) for n, w in tiny_tts.weights(values).items() if n.startswith("talker.")}
    vendor.load_state_dict({n.removeprefix("talker."): w for n, w in given.items()}, strict=True)
    return folder, TTSConfig.from_hf(values), vendor


@pytest.fixture(scope="module", params=["torch", "torch-plain", "mlx"])
def ours(request, case):
    folder, config, _ = case
    backend = MLXBackend("cpu") if request.param == "mlx" else TorchBackend()
    net = net_of(folder, config, backend)
    if request.param == "torch-plain":
        net.compiled = None
    return backend, net


@torch.no_grad()
def vendor_sums(vendor):
    text = vendor.text_projection(vendor.get_text_embeddings()(torch.from_numpy(TEXT)))
    return (text + vendor.get_input_embeddings()(torch.from_numpy(CODEC)))[None]


@torch.no_grad()
def vendor_run(vendor, frames):
    """Greedy frames: the logits of every step, the codes, and the embeddings of the frames."""
    pad = torch.zeros(1, 1, tiny_tts.WIDTH)
    common = dict(use_cache=True, trailing_text_hidden=pad, tts_pad_embed=pad, subtalker_dosample=False)
    x = vendor_sums(vendor)
    out = vendor(inputs_embeds=x, attention_mask=torch.ones(x.shape[:2]), **common)
    logits, codes = [out.logits[0, -1].numpy()], []
    for n in range(frames):
        first = int(out.logits[0, -1, : tiny_tts.CODES].argmax())
        out = vendor(
            input_ids=torch.tensor([[first]]),
            attention_mask=torch.ones(1, x.shape[1] + n + 1),
            past_key_values=out.past_key_values,
            past_hidden=out.past_hidden,
            generation_step=out.generation_step,
            cache_position=torch.tensor([x.shape[1] + n]),
            **common,
        )
        codes.append(out.hidden_states[1][0].numpy())
        logits.append(out.logits[0, -1].numpy())
    return np.stack(logits), np.stack(codes, axis=1)


def sums(backend, net):
    return net.text(backend.array(TEXT[None])) + net.codec(backend.array(CODEC[None]))


def test_prompt_logits_and_frames_are_the_vendors(case, ours):
    *_, vendor = case
    backend, net = ours
    expected, codes = vendor_run(vendor, FRAMES)
    with backend.inference():
        x = sums(backend, net)
        np.testing.assert_allclose(backend.numpy(x)[0], vendor_sums(vendor)[0], atol=1e-4)
        logits, _, got = greedy(backend, net, x, FRAMES)
    assert np.abs(expected).max() > 2 and len(np.unique(codes)) > 40
    np.testing.assert_array_equal(got, codes)
    np.testing.assert_allclose(logits, expected, atol=TOLERANCE)


def test_sums_of_frames(case, ours):
    *_, vendor = case
    backend, net = ours
    codes = np.random.default_rng(5).integers(0, tiny_tts.CODES, (tiny_tts.CODEBOOKS, 7))
    tables = [vendor.get_input_embeddings(), *vendor.code_predictor.get_input_embeddings()]
    with backend.inference():
        got = backend.numpy(net.frames(backend.array(codes[None].astype(np.int32))))[0]
        expected = sum(t(torch.from_numpy(c)) for t, c in zip(tables, codes, strict=True)).detach()
    np.testing.assert_allclose(got, expected, atol=1e-5)


def test_piecewise_prompt_equals_whole(ours):
    backend, net = ours
    with backend.inference():
        x = sums(backend, net)
        whole, hidden = net.talk(x, net.state())
        state = net.state()
        for a, b in ((0, 1), (1, 4), (4, 22), (22, 23)):
            logits, last = net.talk(x[:, a:b], state)
        assert state["length"] == x.shape[1]
        np.testing.assert_allclose(backend.numpy(logits), backend.numpy(whole), atol=TOLERANCE)
        np.testing.assert_allclose(backend.numpy(last), backend.numpy(hidden), atol=TOLERANCE)


def test_taps_are_equal_on_both_backends(case):
    folder, config, _ = case
    seen = {}
    for backend in (TorchBackend(), MLXBackend("cpu")):
        net = net_of(folder, config, backend)
        with (
            backend.inference(),
            tapping("*", numpy=backend.numpy, array=lambda v, like, b=backend: b.array(v)) as acts,
        ):
            greedy(backend, net, sums(backend, net), 2)
        seen[backend.name] = acts
    names = list(seen["torch"])
    assert names == list(seen["mlx"])
    assert {"talker.layers.1.attn", "talker.norm", "talker.logits", "predictor.layers.0.mlp"} <= set(names)
    assert len(seen["torch"].history["talker.logits"]) == 3
    assert len(seen["torch"].history["predictor.logits"]) == 2 * (config.codebooks - 1)
    for name in names:
        for a, b in zip(seen["torch"].history[name], seen["mlx"].history[name], strict=True):
            np.testing.assert_allclose(a, b, atol=2e-3, err_msg=name)


def test_the_predictor_can_be_replaced_by_a_tap(case):
    """An open tap takes the plain path, whose intermediates count."""
    folder, config, _ = case
    backend = TorchBackend()
    net = net_of(folder, config, backend)

    def no_layers(name, value):
        return np.zeros_like(value) if name.endswith(".logits") else None

    with backend.inference():
        _, hidden = net.talk(sums(backend, net), net.state())
        tap = tapping(
            "predictor.logits", numpy=backend.numpy, array=lambda v, like: backend.array(v), replace=no_layers
        )
        with tap:
            codes = net.predict(hidden, 7, lambda logits, index: int(logits[0].argmax()))
    assert codes == [7] + [0] * (config.codebooks - 1)


def test_both_backends_have_the_same_parameters(case):
    folder, config, _ = case
    shapes = [b.parameters(net_of(folder, config, b)) for b in (TorchBackend(), MLXBackend("cpu"))]
    assert shapes[0] == shapes[1] == weights.shapes(config)


def test_a_missing_or_foreign_weight_is_named(tmp_path):
    values = tiny_tts.config("base")
    config = TTSConfig.from_hf(values)
    given = checkpoint(tiny_tts.weights(values))
    del given["talker.code_predictor.lm_head.3.weight"]
    given["talker.code_predictor.lm_head.15.weight"] = given["talker.codec_head.weight"]
    speech_only = {n: w for n, w in given.items() if not n.startswith("speaker_encoder.")}
    for backend in (TorchBackend(), MLXBackend("cpu")):
        with pytest.raises(CheckpointError) as error:
            backend.net(weights.PACKAGE, "TTSNet", config, speech_only)
        assert "missing     talker.code_predictor.lm_head.3.weight" in str(error.value)
        assert "unexpected  talker.code_predictor.lm_head.15.weight" in str(error.value)


@pytest.mark.parametrize("mlx", [False, True], ids=["official", "mlx"])
def test_the_speaker_encoder_is_told_apart(tmp_path, mlx):
    folder = tiny_tts.write(tmp_path, "base")
    config, opened = TTSConfig.from_hf(tiny_tts.config("base")), open_checkpoint(folder, "hf")
    found = Renamed(opened, weights.speaker_rules(mlx=mlx))
    assert all(not name.startswith(("talker.", "speaker")) for name in found) and "fc.weight" in found
    shape = found["blocks.0.conv.weight"].shape
    assert shape == ((16, 5, 128) if mlx else (16, 128, 5))  # the file's is official: as MLX's it is turned
    assert set(Renamed(opened, weights.net_rules(config))) == set(weights.shapes(config))
    opened.close()
