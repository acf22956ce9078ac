"""Whisper's net in MLX: modules and forward passes, nothing else. Twin of torch_net.py.

Shapes: B batch, T tokens, F encoder states, M mel bins, D width, H heads, E head size, V vocabulary, C capacity.
The residual stream is float32 whatever the weights are; matrices run in their own dtype.
A session's state is a dict: self_k, self_v [L, H, C, E], cross_k, cross_v [L, H, F, E], length.
"""

from __future__ import annotations

import mlx.core as mx
from mlx import nn
from mlx.utils import tree_flatten

from izwi_lab.families.shared.taps import tap


class Linear(nn.Linear):
    """A linear layer whose input follows the dtype of its matrix."""

    def __call__(self, x):
        """X [..., in] -> [..., out]."""
        return super().__call__(x.astype(self.weight.dtype))


class LayerNorm(nn.LayerNorm):
    """Layer norm computed in float32."""

    def __call__(self, x):
        """X [..., D] -> float32."""
        weight, bias = self.weight.astype(mx.float32), self.bias.astype(mx.float32)
        return mx.fast.layer_norm(x.astype(mx.float32), weight, bias, 1e-5)


class Attention(nn.Module):
    """Multi-head attention with Whisper's biases: none on the keys."""

    def __init__(self, width, heads):
        super().__init__()
        self.heads = heads
        self.q_proj = Linear(width, width)
        self.k_proj = Linear(width, width, bias=False)
        self.v_proj = Linear(width, width)
        self.out_proj = Linear(width, width)

    def split(self, x):
        """[B, T, D] -> [B, H, T, E]."""
        return x.reshape(*x.shape[:2], self.heads, -1).swapaxes(1, 2)

    def merge(self, x):
        """[B, H, T, E] -> [B, T, D], projected."""
        return self.out_proj(x.swapaxes(1, 2).flatten(2))


class EncoderLayer(nn.Module):
    """Pre-norm attention over all states, then the feed-forward block."""

    def __init__(self, config):
        super().__init__()
        width = config.d_model
        self.self_attn = Attention(width, config.encoder_attention_heads)
        self.self_attn_layer_norm = LayerNorm(width)
        self.fc1 = Linear(width, config.encoder_ffn_dim)
        self.fc2 = Linear(config.encoder_ffn_dim, width)
        self.final_layer_norm = LayerNorm(width)

    def __call__(self, x, name):
        """X [B, F, D] -> [B, F, D]."""
        attn, y = self.self_attn, self.self_attn_layer_norm(x)
        q, k, v = (attn.split(p(y)) for p in (attn.q_proj, attn.k_proj, attn.v_proj))
        x = x + tap(f"{name}.attn", attn.merge(_attend(q, k, v)))
        h = nn.gelu(self.fc1(self.final_layer_norm(x)))
        x = x + tap(f"{name}.mlp", self.fc2(h))
        return tap(name, x)


class Encoder(nn.Module):
    """Mel frames to states: two convolutions, then the layers."""

    def __init__(self, config):
        super().__init__()
        width = config.d_model
        self.conv1 = nn.Conv1d(config.num_mel_bins, width, 3, padding=1)
        self.conv2 = nn.Conv1d(width, width, 3, stride=2, padding=1)
        self.embed_positions = nn.Embedding(config.max_source_positions, width)
        self.layers = [EncoderLayer(config) for _ in range(config.encoder_layers)]
        self.layer_norm = LayerNorm(width)

    def __call__(self, mel):
        """Mel [B, frames, M] -> states [B, F, D] float32."""
        x = nn.gelu(self.conv1(mel.astype(self.conv1.weight.dtype)))
        x = nn.gelu(self.conv2(x))
        x = x.astype(mx.float32) + self.embed_positions.weight.astype(mx.float32)[: x.shape[1]]
        x = tap("encoder.conv", x)
        for n, layer in enumerate(self.layers):
            x = layer(x, f"encoder.layers.{n}")
        return tap("encoder.out", self.layer_norm(x))


class DecoderLayer(nn.Module):
    """Pre-norm self-attention over past tokens, attention over the states, feed-forward."""

    def __init__(self, config):
        super().__init__()
        width = config.d_model
        self.self_attn = Attention(width, config.decoder_attention_heads)
        self.self_attn_layer_norm = LayerNorm(width)
        self.encoder_attn = Attention(width, config.decoder_attention_heads)
        self.encoder_attn_layer_norm = LayerNorm(width)
        self.fc1 = Linear(width, config.decoder_ffn_dim)
        self.fc2 = Linear(config.decoder_ffn_dim, width)
        self.final_layer_norm = LayerNorm(width)

    def __call__(self, x, n, states, heads, scores):
        """X [B, T, D] -> [B, T, D]; one state per row of the batch."""
        name = f"decoder.layers.{n}"
        attn, y = self.self_attn, self.self_attn_layer_norm(x)
        q, k, v = (attn.split(p(y)) for p in (attn.q_proj, attn.k_proj, attn.v_proj))
        past = [self._remember(state, n, k[b], v[b]) for b, state in enumerate(states)]
        x = x + tap(f"{name}.attn", attn.merge(mx.stack([_causal(q[b], *kv) for b, kv in enumerate(past)])))
        attn = self.encoder_attn
        q = attn.split(attn.q_proj(self.encoder_attn_layer_norm(x)))
        if chosen := [head for layer, head in heads if layer == n]:
            k = states[0]["cross_k"][n][mx.array(chosen)].astype(mx.float32)
            picked = q[0][mx.array(chosen)].astype(mx.float32)
            scores.extend((picked * q.shape[-1] ** -0.5) @ k.swapaxes(-1, -2))
        cross = [_attend(q[b : b + 1], s["cross_k"][n][None], s["cross_v"][n][None])[0] for b, s in enumerate(states)]
        x = x + tap(f"{name}.cross", attn.merge(mx.stack(cross)))
        h = nn.gelu(self.fc1(self.final_layer_norm(x)))
        x = x + tap(f"{name}.mlp", self.fc2(h))
        return tap(name, x)

    @staticmethod
    def _remember(state, n, k, v):
        """Write k, v [H, T, E] after what the state holds; return all keys and values so far."""
        start, stop = state["length"], state["length"] + k.shape[1]
        state["self_k"][n, :, start:stop] = k.astype(state["self_k"].dtype)
        state["self_v"][n, :, start:stop] = v.astype(state["self_v"].dtype)
        return state["self_k"][n, :, :stop], state["self_v"][n, :, :stop]


def _causal(q, k, v):
    """Attention of the last T positions over all: q [H, T, E], k and v [H, N, E]."""
    tokens, total = q.shape[1], k.shape[1]
    mask = mx.arange(total)[None] <= mx.arange(total - tokens, total)[:, None]
    return _attend(q[None], k[None], v[None], mask)[0]


def _attend(q, k, v, mask=None):
    k, v = k.astype(q.dtype), v.astype(q.dtype)
    return mx.fast.scaled_dot_product_attention(q, k, v, scale=q.shape[-1] ** -0.5, mask=mask)


class Decoder(nn.Module):
    """Tokens to hidden states; the output matrix is the embedding."""

    def __init__(self, config):
        super().__init__()
        width = config.d_model
        self.embed_tokens = nn.Embedding(config.vocab_size, width)
        self.embed_positions = nn.Embedding(config.max_target_positions, width)
        self.layers = [DecoderLayer(config) for _ in range(config.decoder_layers)]
        self.layer_norm = LayerNorm(width)

    def __call__(self, ids, states, heads=(), scores=None):
        """Ids [B, T] -> hidden [B, T, D]; the states move on by T."""
        tokens = ids.shape[1]
        places = mx.stack([self.embed_positions.weight[s["length"] : s["length"] + tokens] for s in states])
        x = tap("decoder.embed", self.embed_tokens(ids).astype(mx.float32) + places.astype(mx.float32))
        for n, layer in enumerate(self.layers):
            x = layer(x, n, states, heads, scores)
        for state in states:
            state["length"] += tokens
        return tap("decoder.out", self.layer_norm(x))

    def logits(self, hidden):
        """Hidden [..., D] -> logits [..., V], float32."""
        weight = self.embed_tokens.weight
        return tap("logits", (hidden.astype(weight.dtype) @ weight.T).astype(mx.float32))


class WhisperModel(nn.Module):
    """The two halves, under transformers' names."""

    def __init__(self, config):
        super().__init__()
        self.encoder = Encoder(config)
        self.decoder = Decoder(config)


class WhisperNet(nn.Module):
    """Whisper: encode once per window, then step."""

    def __init__(self, config):
        super().__init__()
        self.config = config
        self.model = WhisperModel(config)

    def nbytes(self):
        """Bytes of the weights as held."""
        return sum(p.nbytes for _, p in tree_flatten(self.parameters()))

    def encode(self, mel):
        """Mel [B, frames, M] -> states [B, F, D]."""
        return self.model.encoder(mel)

    def state(self, states, capacity):
        """Encoder states [F, D] of one window -> the state of one session that will hold `capacity` tokens."""
        layers = self.model.decoder.layers
        heads = self.config.decoder_attention_heads
        dtype = layers[0].encoder_attn.k_proj.weight.dtype

        def heads_first(x):
            return x.reshape(x.shape[0], heads, -1).swapaxes(0, 1)

        size = (len(layers), heads, capacity, self.config.d_model // heads)
        return {
            "self_k": mx.zeros(size, dtype),
            "self_v": mx.zeros(size, dtype),
            "cross_k": mx.stack([heads_first(layer.encoder_attn.k_proj(states)) for layer in layers]),
            "cross_v": mx.stack([heads_first(layer.encoder_attn.v_proj(states)) for layer in layers]),
            "length": 0,
        }

    def step(self, ids, states, rows):
        """Ids [B, T], one state per row -> logits [B, R, V] at the token rows asked for, and their hidden [B, R, D]."""
        hidden = self.model.decoder(ids, states)[:, mx.array(rows)]
        return self.model.decoder.logits(hidden), hidden

    def align(self, ids, state, heads):
        """Ids [1, T] from the start -> (cross-attention scores before softmax [N, T, F], logits [T, V])."""
        scores = []
        hidden = self.model.decoder(ids, [state], heads, scores)
        ordered = sorted(range(len(heads)), key=lambda i: heads[i][0])  # layer by layer, as they were computed
        back = sorted(range(len(heads)), key=lambda i: ordered[i])
        return mx.stack([scores[i] for i in back]), self.model.decoder.logits(hidden)[0]
