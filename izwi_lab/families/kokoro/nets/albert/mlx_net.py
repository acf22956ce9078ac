"""The phoneme encoder on MLX: an ALBERT with one shared layer (Lan et al. 2019; names as in transformers)."""

from __future__ import annotations

import mlx.core as mx
import mlx.nn as nn

from izwi_lab.families.kokoro.config import AlbertConfig
from izwi_lab.families.shared.taps import tap


class Embeddings(nn.Module):
    """Token + position + type embeddings, normalised."""

    def __init__(self, config: AlbertConfig, n_tokens: int) -> None:
        super().__init__()
        self.word_embeddings = nn.Embedding(n_tokens, config.embedding)
        self.position_embeddings = nn.Embedding(config.max_positions, config.embedding)
        self.token_type_embeddings = nn.Embedding(2, config.embedding)
        self.LayerNorm = nn.LayerNorm(config.embedding, config.norm_eps)

    def __call__(self, ids: mx.array) -> mx.array:
        """ids: [B, T] -> [B, T, E]."""
        x = self.word_embeddings(ids) + self.token_type_embeddings.weight[0]
        return self.LayerNorm(x + self.position_embeddings.weight[: ids.shape[1]])


class Attention(nn.Module):
    """Full self-attention with post-norm."""

    def __init__(self, config: AlbertConfig) -> None:
        super().__init__()
        self.heads = config.heads
        self.query = nn.Linear(config.hidden, config.hidden)
        self.key = nn.Linear(config.hidden, config.hidden)
        self.value = nn.Linear(config.hidden, config.hidden)
        self.dense = nn.Linear(config.hidden, config.hidden)
        self.LayerNorm = nn.LayerNorm(config.hidden, config.norm_eps)

    def __call__(self, x: mx.array) -> mx.array:
        """x: [B, T, D] -> [B, T, D]."""
        q, k, v = (mx.unflatten(p(x), -1, (self.heads, -1)).swapaxes(1, 2) for p in (self.query, self.key, self.value))
        mixed = mx.fast.scaled_dot_product_attention(q, k, v, scale=q.shape[-1] ** -0.5).swapaxes(1, 2).flatten(2)
        return self.LayerNorm(x + self.dense(mixed))


class Layer(nn.Module):
    """Attention, then a GELU (tanh form) feed-forward, both post-norm."""

    def __init__(self, config: AlbertConfig) -> None:
        super().__init__()
        self.full_layer_layer_norm = nn.LayerNorm(config.hidden, config.norm_eps)
        self.attention = Attention(config)
        self.ffn = nn.Linear(config.hidden, config.intermediate)
        self.ffn_output = nn.Linear(config.intermediate, config.hidden)

    def __call__(self, x: mx.array) -> mx.array:
        """x: [B, T, D] -> [B, T, D]."""
        x = self.attention(x)
        return self.full_layer_layer_norm(x + self.ffn_output(nn.gelu_approx(self.ffn(x))))


class LayerGroup(nn.Module):
    """The one group of the one layer; it exists for its name in the checkpoint."""

    def __init__(self, config: AlbertConfig) -> None:
        super().__init__()
        self.albert_layers = [Layer(config)]


class Encoder(nn.Module):
    """The shared layer, applied `layers` times."""

    def __init__(self, config: AlbertConfig) -> None:
        super().__init__()
        self.layers = config.layers
        self.embedding_hidden_mapping_in = nn.Linear(config.embedding, config.hidden)
        self.albert_layer_groups = [LayerGroup(config)]

    def __call__(self, x: mx.array) -> mx.array:
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

    def __call__(self, ids: mx.array) -> mx.array:
        """ids: [B, T] -> [B, T, D]."""
        return tap("bert", self.encoder(tap("bert.embeddings", self.embeddings(ids))))
