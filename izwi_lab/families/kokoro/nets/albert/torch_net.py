"""The phoneme encoder on torch: an ALBERT with one shared layer (Lan et al. 2019; names as in transformers)."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn as nn
import torch.nn.functional as F

from izwi_lab.families.kokoro.config import AlbertConfig
from izwi_lab.families.shared.taps import tap


class Linear(nn.Linear):
    """A linear layer that a CPU kernel may take over."""

    native: Any = None

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """x: [B, T, inputs] -> [B, T, outputs]."""
        return super().forward(x) if self.native is None or x.shape[0] != 1 else self.native(x)


class Embeddings(nn.Module):
    """Token + position + type embeddings, normalised."""

    def __init__(self, config: AlbertConfig, n_tokens: int) -> None:
        super().__init__()
        self.word_embeddings = nn.Embedding(n_tokens, config.embedding)
        self.position_embeddings = nn.Embedding(config.max_positions, config.embedding)
        self.token_type_embeddings = nn.Embedding(2, config.embedding)
        self.LayerNorm = nn.LayerNorm(config.embedding, config.norm_eps)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        """ids: [B, T] -> [B, T, E]."""
        x = self.word_embeddings(ids) + self.token_type_embeddings.weight[0]
        return self.LayerNorm(x + self.position_embeddings.weight[: ids.shape[1]])


class Attention(nn.Module):
    """Full self-attention with post-norm."""

    def __init__(self, config: AlbertConfig) -> None:
        super().__init__()
        self.heads = config.heads
        self.query = Linear(config.hidden, config.hidden)
        self.key = Linear(config.hidden, config.hidden)
        self.value = Linear(config.hidden, config.hidden)
        self.dense = Linear(config.hidden, config.hidden)
        self.LayerNorm = nn.LayerNorm(config.hidden, config.norm_eps)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """x: [B, T, D] -> [B, T, D]."""
        q, k, v = (p(x).unflatten(-1, (self.heads, -1)).transpose(1, 2) for p in (self.query, self.key, self.value))
        mixed = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
        return self.LayerNorm(x + self.dense(mixed))


class Layer(nn.Module):
    """Attention, then a GELU (tanh form) feed-forward, both post-norm."""

    def __init__(self, config: AlbertConfig) -> None:
        super().__init__()
        self.full_layer_layer_norm = nn.LayerNorm(config.hidden, config.norm_eps)
        self.attention = Attention(config)
        self.ffn = Linear(config.hidden, config.intermediate)
        self.ffn_output = Linear(config.intermediate, config.hidden)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """x: [B, T, D] -> [B, T, D]."""
        x = self.attention(x)
        return self.full_layer_layer_norm(x + self.ffn_output(F.gelu(self.ffn(x), approximate="tanh")))


class LayerGroup(nn.Module):
    """The one group of the one layer; it exists for its name in the checkpoint."""

    def __init__(self, config: AlbertConfig) -> None:
        super().__init__()
        self.albert_layers = nn.ModuleList([Layer(config)])


class Encoder(nn.Module):
    """The shared layer, applied `layers` times."""

    def __init__(self, config: AlbertConfig) -> None:
        super().__init__()
        self.layers = config.layers
        self.embedding_hidden_mapping_in = Linear(config.embedding, config.hidden)
        self.albert_layer_groups = nn.ModuleList([LayerGroup(config)])

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """x: [B, T, E] -> [B, T, D]."""
        x = self.embedding_hidden_mapping_in(x)
        layer = self.albert_layer_groups[0].albert_layers[0]
        for index in range(self.layers):
            x = tap(f"bert.layers.{index}", layer(x))
        return x


class Albert(nn.Module):
    """Phoneme ids to contextual vectors."""

    def __init__(self, config: AlbertConfig, n_tokens: int) -> None:
        super().__init__()
        self.embeddings = Embeddings(config, n_tokens)
        self.encoder = Encoder(config)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        """ids: [B, T] -> [B, T, D]."""
        return tap("bert", self.encoder(tap("bert.embeddings", self.embeddings(ids))))
