"""Text models small enough to ask everything: random nets of any layer types, and a table instead of a net."""

from __future__ import annotations

import numpy as np
import torch

from izwi_lab import catalog
from izwi_lab.artifacts.tensors import Tensor
from izwi_lab.backends.base import BackendPlan
from izwi_lab.backends.loading import random_weight
from izwi_lab.backends.torch_backend import TorchBackend
from izwi_lab.families.shared.nets.decoder.config import CONV, FULL, SLIDING, DecoderConfig, rope
from izwi_lab.families.shared.text_model import TextModel

HYBRID = (FULL, SLIDING, CONV)  # a ring of 256 positions and one of 64 beside a full cache
VARIANT = catalog.get("SmolLM2-135M-Instruct")


def config(layer_types=(FULL, FULL), vocab=97, context=600):
    kinds = [k for k in (FULL, SLIDING) if k in layer_types]
    return DecoderConfig(
        vocab_size=vocab, hidden_size=32, intermediate_size=48, num_layers=len(layer_types), num_heads=4,
        num_kv_heads=2, head_dim=8, max_positions=context, ropes=tuple((k, rope(8, 10_000.0)) for k in kinds),
        layer_types=layer_types, window=9 if SLIDING in layer_types else 0,
        conv_kernel=3 if CONV in layer_types else 0,
    )  # fmt: skip


def text_model(c, backend=None, *, seed=0, gain=3.0):
    """A TextModel without a tokenizer on random weights; gain sharpens its logits."""
    backend = backend or TorchBackend()
    where = "izwi_lab.families.shared.nets.decoder"
    shapes = backend.parameters(backend.net(where, "DecoderLM", c, None))
    weights = {name: random_weight(name, shape, seed) for name, shape in shapes.items()}
    embedding = "model.embed_tokens.weight"
    weights[embedding] = Tensor.of(weights[embedding].data * gain)
    net = backend.net(where, "DecoderLM", c, weights)
    return TextModel(VARIANT, BackendPlan(backend.name, backend.device, backend.dtype, "test"), backend, net, c, None)


class Table:
    """Instead of a net: the logits after a token are a row of a table [V, V]."""

    def __init__(self, rows, config):
        self.rows, self.config, self.passes = torch.from_numpy(np.asarray(rows, np.float32)), config, 0

    def weight_bytes(self):
        return 0

    def state(self, kv_dtype=None):
        return {"length": 0, "k": [], "v": [], "conv": []}

    def every(self, ids, state):
        self.passes += 1
        state["length"] += ids.shape[1]
        assert state["length"] <= self.config.max_positions
        logits = self.rows[ids.long()]
        return logits, logits[..., :2]

    def __call__(self, ids, state):
        logits, hidden = self.every(ids, state)
        return logits[:, -1], hidden[:, -1]


def table_model(rows, context=600):
    """A TextModel whose next token depends on the last alone."""
    c, backend = config(vocab=len(rows), context=context), TorchBackend()
    return TextModel(VARIANT, BackendPlan("torch", "cpu", "float32", "test"), backend, Table(rows, c), c, None)
