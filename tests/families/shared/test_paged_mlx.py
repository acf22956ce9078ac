"""MLX decoders over caches in blocks of a pool."""

from __future__ import annotations

import dataclasses

import mlx.core as mx
import numpy as np
import pytest
from decoder_cases import CONFIGS, PACKAGE, weights_for

from izwi_lab.backends.mlx_backend import MLXBackend
from izwi_lab.errors import InvalidInputError
from izwi_lab.families.shared.nets.decoder import cache
from izwi_lab.families.shared.nets.decoder.cache_mlx import pool, reserve

BLOCK, SIZES = 16, (70, 1, 1, 90, 2, 1, 64, 1)


@pytest.mark.parametrize("name", [*CONFIGS, "qwen3 int8"])
def test_blocks_anywhere_in_a_pool_serve_as_own_caches(name):
    name, _, kind = name.partition(" ")
    config = dataclasses.replace(CONFIGS[name], max_positions=400)
    net = MLXBackend("cpu").net(PACKAGE, "DecoderLM", config, weights_for(name))
    ids = mx.array(np.random.default_rng(0).integers(0, config.vocab_size, (1, 230)))
    shared = pool(config, mx.zeros(1), 40, BLOCK, int8=kind == "int8")
    for seed in (1, 2):  # the second in what the first left
        order = np.random.default_rng(seed).permutation(40)[:15].astype(np.int32)
        conv = cache.empty(kind or None)
        reserve(conv, config, mx.zeros(1), 1)
        own = net.state(kind or None)
        state = {**shared, "conv": conv["conv"], "length": 0, "block": BLOCK, "blocks": order}
        at = 0
        for size in SIZES:
            expected, _ = net(ids[:, at : at + size], own)
            got, _ = net(ids[:, at : at + size], state)
            np.testing.assert_allclose(np.array(got), np.array(expected), atol=2e-5)
            at += size
    with pytest.raises(InvalidInputError, match="no room"):
        net(ids[:, :11], state)
