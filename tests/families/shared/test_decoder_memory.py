"""How much memory a dense net takes while it loads, in a process of its own: the peak of this one is of other tests."""

from __future__ import annotations

import subprocess
import sys

import pytest

MOST = 1.25  # of the weights
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


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_fused_projections_do_not_add_up_while_a_dense_net_loads():
    done = subprocess.run([sys.executable, "-c", LOADS], capture_output=True, text=True, timeout=300, check=True)
    weights, peak = map(int, done.stdout.split())
    assert weights > 200e6
    assert 0.9 * weights < peak < MOST * weights, (weights, peak)
