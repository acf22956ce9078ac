"""The reference net (kokoro 0.9.4) at a tiny size and at full size, and the golden values made with it.

    python tests/families/kokoro/kokoro_reference.py FOLDER_WITH_KOKORO_ONNX    # rewrites golden_*.npz

Tests compare with the golden files, so they need no `kokoro`; where it is installed one test makes the tiny ones again.
The package is imported without its __init__, which would load a G2P that needs spaCy.
"""

from __future__ import annotations

import contextlib
import importlib.util
import sys
import types
import warnings
import zlib
from collections import OrderedDict
from pathlib import Path
from unittest import mock

import numpy as np

from izwi_lab import catalog

HERE = Path(__file__).parent
PHONEMES = "həlˈO!"
REAL_PHONEMES = "həlˈO wˈɜɹld, ðɪs ɪz ɐ tˈɛst ʌv ðə spˈiʧ mˈɑdᵊl."
HIDDEN, WIDTH, RESIDUAL = 32, 48, 8  # full size: 512, 1024, 64
TINY = {
    "istftnet": {
        "upsample_kernel_sizes": [20, 12],
        "upsample_rates": [10, 6],
        "gen_istft_hop_size": 5,
        "gen_istft_n_fft": 20,
        "resblock_dilation_sizes": [[1, 3, 5]] * 3,
        "resblock_kernel_sizes": [3, 7, 11],
        "upsample_initial_channel": HIDDEN,
    },
    "dim_in": 64,
    "dropout": 0.2,
    "hidden_dim": HIDDEN,
    "max_conv_dim": HIDDEN,
    "max_dur": 50,
    "multispeaker": True,
    "n_layer": 3,
    "n_mels": 80,
    "n_token": 178,
    "style_dim": 128,
    "text_encoder_kernel_size": 5,
    "plbert": {
        "hidden_size": 40,
        "num_attention_heads": 4,
        "intermediate_size": 64,
        "max_position_embeddings": 512,
        "num_hidden_layers": 2,
        "dropout": 0.1,
    },
    "vocab": catalog.config(catalog.get("Kokoro-82M"))["vocab"],
    "decoder_width": WIDTH,  # not in the official file: the reference has these two as constants
    "residual_width": RESIDUAL,
}


def weight(name: str, shape: tuple[int, ...]) -> np.ndarray:
    """A seeded value for a parameter of the tiny net, by its canonical name (weight norm folded)."""
    rng = np.random.Generator(np.random.Philox(key=[7, zlib.crc32(name.encode())]))
    value = rng.standard_normal(shape, dtype=np.float32)
    if ".alpha" in name:
        value = 1.0 + 0.2 * np.tanh(value)
    elif name.endswith(("gamma", "LayerNorm.weight", "layer_norm.weight")):
        value = 1 + 0.1 * value
    elif len(shape) > 1:
        value /= np.sqrt(np.prod(shape[1:]))
    else:
        value *= 0.1
    if name == "predictor.duration_proj.linear_layer.weight":
        value *= 40
    elif name == "predictor.duration_proj.linear_layer.bias":
        value = np.linspace(-12.0, -3.0, shape[0], dtype=np.float32)
    elif name == "predictor.F0_proj.weight":
        value *= 60
    elif name == "predictor.F0_proj.bias":
        value = np.full(shape, 120.0, np.float32)
    elif name == "decoder.generator.conv_post.weight":
        value *= 0.2
    return np.asarray(value, np.float32)


def style() -> np.ndarray:
    """The style vector of the tests: float32 [1, 256]."""
    return np.random.Generator(np.random.Philox(5)).standard_normal((1, 256), dtype=np.float32) * np.float32(0.3)


def available() -> bool:
    """Whether the reference package is installed."""
    return all(n in sys.modules or importlib.util.find_spec(n) for n in ("kokoro", "transformers", "loguru"))


def kmodel(config: dict, *, tiny: bool):
    """A reference net with its weight norm still in place, in evaluation mode."""
    import torch

    with warnings.catch_warnings(), contextlib.ExitStack() as stack:
        warnings.simplefilter("ignore")
        if "kokoro.model" not in sys.modules:
            root = Path(importlib.util.find_spec("kokoro").origin).parent
            package = types.ModuleType("kokoro")
            package.__path__ = [str(root)]
            sys.modules["kokoro"] = package
        import kokoro.istftnet
        import kokoro.model

        if tiny:
            stack.enter_context(mock.patch.object(kokoro.istftnet.Decoder, "__init__", _tiny_decoder))
        stack.enter_context(mock.patch.object(torch, "load", lambda *a, **k: {}))
        plain = {k: v for k, v in config.items() if k not in ("decoder_width", "residual_width")}
        return kokoro.model.KModel(repo_id="hexgrad/Kokoro-82M", config=plain, model="none").eval()


def _tiny_decoder(self, dim_in, style_dim, dim_out, **net) -> None:
    """The reference decoder's constructor with its three constant widths replaced."""
    import torch.nn as nn
    from kokoro import istftnet
    from torch.nn.utils import weight_norm

    nn.Module.__init__(self)
    block, joined = istftnet.AdainResBlk1d, WIDTH + 2 + RESIDUAL
    self.encode = block(dim_in + 2, WIDTH, style_dim)
    self.decode = nn.ModuleList([block(joined, WIDTH, style_dim) for _ in range(3)])
    self.decode.append(block(joined, HIDDEN, style_dim, upsample=True))
    self.F0_conv = weight_norm(nn.Conv1d(1, 1, kernel_size=3, stride=2, padding=1))
    self.N_conv = weight_norm(nn.Conv1d(1, 1, kernel_size=3, stride=2, padding=1))
    self.asr_res = nn.Sequential(weight_norm(nn.Conv1d(dim_in, RESIDUAL, kernel_size=1)))
    self.generator = istftnet.Generator(style_dim, **{k: v for k, v in net.items() if k != "disable_complex"})


def fill(model, values) -> None:
    """Put canonical weights into a reference net: g = |w|, v = w where it has weight norm."""
    import torch

    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if ".pooler." in name or ".norm." in name:
                continue
            base = name.removesuffix("_g").removesuffix("_v")
            w = torch.from_numpy(np.array(values(base, tuple(_folded_shape(model, name, parameter)))))
            if name.endswith("_g"):
                parameter.copy_(w.flatten(1).norm(dim=1).view(parameter.shape))
            else:
                # a row that is all zero keeps any direction: its g is zero
                empty = (w.flatten(1).norm(dim=1) == 0) if name.endswith("_v") else None
                if empty is not None:
                    w[empty] = 1.0
                parameter.copy_(w)


def _folded_shape(model, name: str, parameter):
    if not name.endswith("_g"):
        return parameter.shape
    return model.get_parameter(name.removesuffix("_g") + "_v").shape


def official_state(model) -> dict:
    """The state as the official .pth holds it: five dicts under `module.`, without the unused instance-norm values."""
    parts = ("bert", "bert_encoder", "predictor", "decoder", "text_encoder")
    return {
        part: OrderedDict((f"module.{k}", v) for k, v in getattr(model, part).state_dict().items() if ".norm." not in k)
        for part in parts
    }


def run(model, ids: list[int], row: np.ndarray) -> dict[str, np.ndarray]:
    """The reference's intermediates and audio with its random parts zeroed."""
    import torch

    seen: dict[str, np.ndarray] = {}

    def keep(name, pick):
        return lambda module, given, got: seen.__setitem__(name, np.array(pick(given, got).detach().numpy()))

    generator = model.decoder.generator
    hooks = [
        model.bert.register_forward_hook(keep("bert", lambda i, o: o[0])),
        model.predictor.lstm.register_forward_hook(keep("predictor.lstm", lambda i, o: o[0][0])),
        model.text_encoder.register_forward_hook(keep("text_encoder", lambda i, o: o[0].T)),
        model.decoder.register_forward_hook(keep("asr", lambda i, o: i[0][0].T)),
        model.decoder.register_forward_hook(keep("F0", lambda i, o: i[1][0])),
        model.decoder.register_forward_hook(keep("N", lambda i, o: i[2][0])),
        generator.register_forward_hook(keep("generator.features", lambda i, o: i[0][0].T)),
        generator.m_source.register_forward_hook(keep("har_source", lambda i, o: o[0][0, :, 0])),
        generator.noise_convs[0].register_forward_hook(keep("har", lambda i, o: i[0][0].T)),
        generator.conv_post.register_forward_hook(keep("generator.conv_post", lambda i, o: o[0].T)),
    ]
    zero_rand = mock.patch.object(torch, "rand", lambda *a, **k: torch.zeros(*a))
    zero_noise = mock.patch.object(torch, "randn_like", lambda x, **k: torch.zeros_like(x))
    with zero_rand, zero_noise, torch.no_grad():
        audio, durations = model.forward_with_tokens(torch.tensor([ids]), torch.from_numpy(row), 1.0)
    for hook in hooks:
        hook.remove()
    return {**seen, "audio": audio.numpy(), "durations": durations.numpy()}


def tiny_ids() -> list[int]:
    """Ids of PHONEMES in the tiny vocabulary."""
    return [0, *(TINY["vocab"][p] for p in PHONEMES), 0]


def tiny_golden() -> dict[str, np.ndarray]:
    """What the tiny reference gives."""
    model = kmodel(TINY, tiny=True)
    fill(model, weight)
    return run(model, tiny_ids(), style())


def real_golden(folder: Path) -> dict[str, np.ndarray]:
    """What the full-size reference gives on the real weights: durations, pitch, and a log-mel of the audio."""
    from izwi_lab.artifacts.kokoro_onnx_reader import open_folder

    checkpoint = open_folder(folder)
    config = catalog.config(catalog.get("Kokoro-82M"))
    model = kmodel(config, tiny=False)
    fill(model, lambda name, shape: checkpoint.read(name).data.reshape(shape))
    ids = [0, *(config["vocab"][p] for p in REAL_PHONEMES), 0]
    table = np.fromfile(folder / "voices" / "af_heart.bin", "<f4").reshape(510, 1, 256)
    got = run(model, ids, table[len(REAL_PHONEMES) - 1])
    mel = log_mel(got["audio"]).astype(np.float16)
    return {"durations": got["durations"], "F0": got["F0"], "mel": mel, "samples": np.array(got["audio"].shape[0])}


def log_mel(samples: np.ndarray) -> np.ndarray:
    """Natural log of 80 mel-spaced bands of the power spectrum (1024 window, 256 hop): [80, frames]."""
    frames = np.lib.stride_tricks.sliding_window_view(np.pad(samples, 512), 1024)[::256] * np.hanning(1024)
    power = np.abs(np.fft.rfft(frames, axis=-1)) ** 2
    edges = 700 * (10 ** (np.linspace(0, 2595 * np.log10(1 + 12000 / 700), 82) / 2595) - 1)
    hertz = np.linspace(0, 12000, 513)
    rise = (hertz - edges[:-2, None]) / (edges[1:-1] - edges[:-2])[:, None]
    fall = (edges[2:, None] - hertz) / (edges[2:] - edges[1:-1])[:, None]
    bank = np.maximum(0, np.minimum(rise, fall)) * (2 / (edges[2:] - edges[:-2]))[:, None]
    return np.log(bank @ power.T + 1e-5)


if __name__ == "__main__":
    np.savez_compressed(HERE / "golden_tiny.npz", **tiny_golden())
    np.savez_compressed(HERE / "golden_real.npz", **real_golden(Path(sys.argv[1])))
