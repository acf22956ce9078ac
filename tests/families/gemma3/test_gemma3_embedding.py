"""Gemma's embeddings are multiplied by the root of their width, rounded to the dtype of the weights."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch

from izwi_lab import catalog
from izwi_lab.backends.mlx_backend import MLXBackend
from izwi_lab.backends.torch_backend import TorchBackend
from izwi_lab.families.gemma3.config import from_hf

IDS = np.arange(12, dtype=np.int32)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("make", [TorchBackend, MLXBackend], ids=["torch", "mlx"])
def test_embeddings_equal_transformers_bit_by_bit(make, dtype):
    from transformers.models.gemma3.modeling_gemma3 import Gemma3TextScaledWordEmbedding

    official = from_hf(catalog.config(catalog.get("Gemma-3-270m")))
    config = dataclasses.replace(official, vocab_size=16, num_layers=1, layer_types=official.layer_types[:1])
    assert config.embed_scale**2 == pytest.approx(640)  # its root is not exact in bfloat16
    backend = make("cpu", dtype)
    net = backend.net("izwi_lab.families.shared.nets.decoder", "DecoderLM", config, None)
    theirs = Gemma3TextScaledWordEmbedding(16, 640, 0, embed_scale=640**0.5)
    with torch.no_grad():
        theirs.weight.copy_(torch.from_numpy(backend.numpy(net.model.embed_tokens.weight)))
        expected = theirs.to(getattr(torch, dtype))(torch.from_numpy(IDS[None].astype(np.int64))).float().numpy()
    with backend.inference():
        np.testing.assert_array_equal(backend.numpy(net.embed(backend.array(IDS[None]))), expected)
