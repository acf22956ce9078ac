"""How much memory a net takes while it loads, in a process of its own: the peak of this one is of other tests."""

from __future__ import annotations

import json
import subprocess
import sys

import gguf
import numpy as np
import pytest
from safetensors.numpy import save_file

MOST = 1.35  # of the weights: twice would be 2; huge pages, where the system makes some, round up by several MB
LOADS = """
from izwi_lab.backends.loading import random_weight
from izwi_lab.backends.torch_backend import TorchBackend
from izwi_lab.families.shared.nets.decoder.config import FULL, DecoderConfig, rope
from izwi_lab.families.shared.nets.decoder import torch_net  # before the first count

def status(name):
    with open("/proc/self/status") as file:
        return next(int(line.split()[1]) * 1024 for line in file if line.startswith(name))

config = DecoderConfig(  # layers of the size of Qwen3-0.6B, whose parts are below what malloc gives back by itself
    vocab_size=1000, hidden_size=1024, intermediate_size=3072, num_layers=8, num_heads=16, num_kv_heads=8,
    head_dim=128, max_positions=512, ropes=((FULL, rope(128, 1e6)),), qk_norm=True,
)
backend = TorchBackend("cpu", "bfloat16")
random_weight("warm.weight", (1 << 21, 2), 0, "bfloat16")
before = status("VmRSS")
net = backend.net("izwi_lab.families.shared.nets.decoder", "DecoderLM", config, None)
print(net.weight_bytes(), status("VmHWM") - before)
"""

QUANTISED = """
import sys
from pathlib import Path

from izwi_lab.artifacts.checkpoint import open_checkpoint
from izwi_lab.backends import native
from izwi_lab.backends.torch_backend import TorchBackend
from izwi_lab.families.shared.nets.decoder.config import FULL, DecoderConfig, rope
from izwi_lab.families.shared.nets.decoder import torch_net
from izwi_lab.families.shared.nets.quant import torch_net as quant
from izwi_lab.families.shared.weights import Renamed

def status(name):
    with open("/proc/self/status") as file:
        return next(int(line.split()[1]) * 1024 for line in file if line.startswith(name))

assert native.library("affine", wait=True) and native.library("decoder", wait=True)
config = DecoderConfig(
    vocab_size=VOCAB, hidden_size=WIDTH, intermediate_size=64, num_layers=1, num_heads=2, num_kv_heads=2, head_dim=32,
    max_positions=512, ropes=((FULL, rope(32, 1e6)),),
)
checkpoint = open_checkpoint(Path(sys.argv[1]), sys.argv[2])
before = status("VmRSS")
net = TorchBackend().net("izwi_lab.families.shared.nets.decoder", "DecoderLM", config, Renamed(checkpoint, ()))
assert net.model.embed_tokens.panelled
print(net.weight_bytes(), status("VmHWM") - before)
"""
VOCAB, WIDTH = 160_000, 640  # an embedding of 109 MB, as large a part of its model as Gemma 3 270M's


def net_shapes():
    layer, head, mlp = "model.layers.0.", "self_attn.", "mlp."
    matrices = {layer + head + f"{n}_proj.weight": (64, WIDTH) for n in "qkv"}
    matrices |= {layer + mlp + f"{n}_proj.weight": (64, WIDTH) for n in ("gate", "up")}
    matrices |= {layer + head + "o_proj.weight": (WIDTH, 64), layer + mlp + "down_proj.weight": (WIDTH, 64)}
    norms = [layer + "input_layernorm.weight", layer + "post_attention_layernorm.weight", "model.norm.weight"]
    return {"model.embed_tokens.weight": (VOCAB, WIDTH), **matrices, **{n: (WIDTH,) for n in norms}}


def write_gguf(folder):
    writer = gguf.GGUFWriter(folder / "tiny.gguf", "llama")
    for name, shape in net_shapes().items():
        if len(shape) == 1:
            writer.add_tensor(name, np.ones(shape, np.float32))
        else:
            blocks = np.full((shape[0], shape[1] // 32, 34), 7, np.uint8)  # Q8_0: a scale, then 32 codes
            kind = gguf.GGMLQuantizationType.Q8_0
            writer.add_tensor(name, blocks.reshape(shape[0], -1), raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def write_mlx(folder):
    tensors = {}
    for name, shape in net_shapes().items():
        if len(shape) == 1:
            tensors[name] = np.ones(shape, np.float32)
        else:
            tensors[name] = np.full((shape[0], shape[1] // 4), 7, np.uint32)
            for part in ("scales", "biases"):
                tensors[name.replace("weight", part)] = np.ones((shape[0], shape[1] // 64), np.float16)
    save_file(tensors, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps({"quantization": {"bits": 8, "group_size": 64}}))


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.parametrize(("layout", "write"), [("gguf", write_gguf), ("mlx", write_mlx)])
def test_a_large_quantised_embedding_is_never_held_twice(layout, write, tmp_path):
    write(tmp_path)
    program = QUANTISED.replace("VOCAB", str(VOCAB)).replace("WIDTH", str(WIDTH))
    command = [sys.executable, "-c", program, str(tmp_path), layout]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=True)
    weights, peak = map(int, done.stdout.split())
    assert weights > 100e6
    assert 0.9 * weights < peak < MOST * weights, (weights, peak)


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_fused_projections_do_not_add_up_while_a_dense_net_loads():
    done = subprocess.run([sys.executable, "-c", LOADS], capture_output=True, text=True, timeout=300, check=True)
    weights, peak = map(int, done.stdout.split())
    assert weights > 200e6
    assert 0.9 * weights < peak < MOST * weights, (weights, peak)
