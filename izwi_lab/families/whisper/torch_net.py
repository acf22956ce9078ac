"""Whisper's net in torch: modules and forward passes, nothing else. Twin of mlx_net.py.

Shapes: B batch, T tokens, F encoder states, M mel bins, D width, H heads, E head size, V vocabulary, C capacity.
The residual stream is float32 whatever the weights are; matrices run in their own dtype, except float16 matrices on a
CPU, which torch multiplies slowly: those are widened once, on first use (the native kernel reads them as they are).
A session's state is a dict: self_k, self_v [L, H, C, E], cross_k, cross_v [L, H, F, E], length.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

from izwi_lab.families.shared.taps import tap, tapped


class Linear(nn.Linear):
    """A linear layer whose input follows the dtype of its matrix."""

    wide = None

    def matrix(self):
        """The matrix in a dtype this device multiplies well."""
        if self.weight.dtype != torch.float16 or self.weight.device.type != "cpu":
            return self.weight
        if self.wide is None:
            self.wide = self.weight.float()
        return self.wide

    def forward(self, x):
        """X [..., in] -> [..., out]."""
        weight = self.matrix()
        bias = None if self.bias is None else self.bias.to(weight.dtype)
        return F.linear(x.to(weight.dtype), weight, bias)


class Embedding(nn.Embedding):
    """A table whose values come from the checkpoint: torch's random fill would import its symbolic algebra (80 MB)."""

    def reset_parameters(self):
        """Leave the memory as it is."""


class LayerNorm(nn.LayerNorm):
    """Layer norm computed in float32."""

    def forward(self, x):
        """X [..., D] -> float32."""
        return F.layer_norm(x.float(), self.normalized_shape, self.weight.float(), self.bias.float(), self.eps)


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
        return x.unflatten(-1, (self.heads, -1)).transpose(1, 2)

    def merge(self, x):
        """[B, H, T, E] -> [B, T, D], projected."""
        return self.out_proj(x.transpose(1, 2).flatten(2))


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

    def forward(self, x, name):
        """X [B, F, D] -> [B, F, D]."""
        attn = self.self_attn
        y = self.self_attn_layer_norm(x).to(attn.q_proj.matrix().dtype)
        q, k, v = (attn.split(p(y)) for p in (attn.q_proj, attn.k_proj, attn.v_proj))
        x = x + tap(f"{name}.attn", attn.merge(F.scaled_dot_product_attention(q, k, v)))
        h = F.gelu(self.fc1(self.final_layer_norm(x)))
        x = x + tap(f"{name}.mlp", self.fc2(h))
        return tap(name, x)


class Encoder(nn.Module):
    """Mel frames to states: two convolutions, then the layers."""

    def __init__(self, config):
        super().__init__()
        width = config.d_model
        self.conv1 = nn.Conv1d(config.num_mel_bins, width, 3, padding=1)
        self.conv2 = nn.Conv1d(width, width, 3, stride=2, padding=1)
        self.embed_positions = Embedding(config.max_source_positions, width)
        self.layers = nn.ModuleList(EncoderLayer(config) for _ in range(config.encoder_layers))
        self.layer_norm = LayerNorm(width)

    def forward(self, mel):
        """Mel [B, frames, M] -> states [B, F, D] float32."""
        x = F.gelu(_conv(mel, self.conv1, 1))
        x = F.gelu(_conv(x, self.conv2, 2))
        x = x.float() + self.embed_positions.weight.float()[: x.shape[1]]
        x = tap("encoder.conv", x)
        for n, layer in enumerate(self.layers):
            x = layer(x, f"encoder.layers.{n}")
        return tap("encoder.out", self.layer_norm(x))


def _conv(x, conv, stride):
    """A width-3, pad-1 convolution of channels-last x as one matrix product: [B, T, I] -> [B, T', O]."""
    weight = conv.weight.float() if x.device.type == "cpu" and conv.weight.dtype == torch.float16 else conv.weight
    out, channels, _ = weight.shape
    x = F.pad(x.to(weight.dtype), (0, 0, 1, 1))
    rows = x.unfold(1, 3, stride).transpose(2, 3).flatten(2)  # [B, T', 3 I], tap by tap
    return F.linear(rows, weight.transpose(1, 2).reshape(out, 3 * channels), conv.bias.to(weight.dtype))


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

    def forward(self, x, n, states, heads, scores):
        """X [B, T, D] -> [B, T, D]; one state per row of the batch."""
        name = f"decoder.layers.{n}"
        attn, y = self.self_attn, self.self_attn_layer_norm(x)
        q, k, v = (attn.split(p(y)) for p in (attn.q_proj, attn.k_proj, attn.v_proj))
        past = [self._remember(state, n, k[b], v[b]) for b, state in enumerate(states)]
        x = x + tap(f"{name}.attn", attn.merge(torch.stack([_causal(q[b], *kv) for b, kv in enumerate(past)])))
        attn = self.encoder_attn
        q = attn.split(attn.q_proj(self.encoder_attn_layer_norm(x)))
        if chosen := [head for layer, head in heads if layer == n]:
            k = states[0]["cross_k"][n, chosen].float()
            scores.extend((q[0, chosen].float() * q.shape[-1] ** -0.5) @ k.mT)
        cross = [_cross(q[b], state["cross_k"][n], state["cross_v"][n]) for b, state in enumerate(states)]
        x = x + tap(f"{name}.cross", attn.merge(torch.stack(cross)))
        h = F.gelu(self.fc1(self.final_layer_norm(x)))
        x = x + tap(f"{name}.mlp", self.fc2(h))
        return tap(name, x)

    @staticmethod
    def _remember(state, n, k, v):
        """Write k, v [H, T, E] after what the state holds; return all keys and values so far."""
        start, stop = state["length"], state["length"] + k.shape[1]
        state["self_k"][n, :, start:stop] = k
        state["self_v"][n, :, start:stop] = v
        return state["self_k"][n, :, :stop], state["self_v"][n, :, :stop]


def _causal(q, k, v):
    """Attention of the last T positions over all: q [H, T, E], k and v [H, N, E]."""
    tokens, total = q.shape[1], k.shape[1]
    mask = torch.ones(tokens, total, dtype=torch.bool, device=q.device).tril(total - tokens)
    return F.scaled_dot_product_attention(q[None], k[None].to(q.dtype), v[None].to(q.dtype), attn_mask=mask)[0]


def _cross(q, k, v):
    return F.scaled_dot_product_attention(q[None], k[None].to(q.dtype), v[None].to(q.dtype))[0]


class Decoder(nn.Module):
    """Tokens to hidden states; the output matrix is the embedding."""

    def __init__(self, config):
        super().__init__()
        width = config.d_model
        self.embed_tokens = Embedding(config.vocab_size, width)
        self.embed_positions = Embedding(config.max_target_positions, width)
        self.layers = nn.ModuleList(DecoderLayer(config) for _ in range(config.decoder_layers))
        self.layer_norm = LayerNorm(width)
        self._wide = None

    def forward(self, ids, states, heads=(), scores=None):
        """Ids [B, T] -> hidden [B, T, D]; the states move on by T."""
        tokens = ids.shape[1]
        places = torch.stack([self.embed_positions.weight[s["length"] : s["length"] + tokens] for s in states])
        x = tap("decoder.embed", self.embed_tokens(ids).float() + places.float())
        for n, layer in enumerate(self.layers):
            x = layer(x, n, states, heads, scores)
        for state in states:
            state["length"] += tokens
        return tap("decoder.out", self.layer_norm(x))

    def logits(self, hidden):
        """Hidden [..., D] -> logits [..., V], float32."""
        weight = self.embed_tokens.weight
        if weight.dtype == torch.float16 and weight.device.type == "cpu":
            weight = self._wide = weight.float() if self._wide is None else self._wide
        return tap("logits", F.linear(hidden.to(weight.dtype), weight).float())


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
        self.native = None

    def finalize(self, backend):
        """Attach the native decoder step where it can serve these weights."""
        from izwi_lab.families.whisper.native_torch import NativeDecoder

        self.native = NativeDecoder.of(self.model.decoder, self.config, backend.device)

    def nbytes(self):
        """Bytes of the weights as held."""
        return sum(p.nbytes for p in self.parameters())

    def encode(self, mel):
        """Mel [B, frames, M] -> states [B, F, D]."""
        return self.model.encoder(mel)

    def state(self, states, capacity):
        """Encoder states [F, D] of one window -> the state of one session that will hold `capacity` tokens."""
        layers = self.model.decoder.layers
        heads = self.config.decoder_attention_heads
        like = self.model.encoder.layers[0].self_attn.q_proj.matrix()
        # float16 keys keep 11 bits where the encoder's own bfloat16 keeps 8, and the native step reads them directly
        held = torch.float16 if like.dtype == torch.bfloat16 and like.device.type == "cpu" else like.dtype
        size = (len(layers), heads, states.shape[0], self.config.d_model // heads)
        cross = [torch.empty(size, dtype=held, device=like.device) for _ in range(2)]
        x = states.to(like.dtype)
        for n, layer in enumerate(layers):
            attn = layer.encoder_attn
            for out, proj in zip(cross, (attn.k_proj, attn.v_proj), strict=True):
                bias = None if proj.bias is None else proj.bias.to(x.dtype)
                out[n] = F.linear(x, proj.weight.to(x.dtype), bias).unflatten(-1, (heads, -1)).transpose(0, 1)
        small = (*size[:2], capacity, size[3])
        kept = torch.float32 if like.device.type == "cpu" else like.dtype
        # not zeroed: rows are written before they are read, and untouched memory costs nothing
        past = [torch.empty(small, dtype=kept, device=like.device) for _ in range(2)]
        return {"self_k": past[0], "self_v": past[1], "cross_k": cross[0], "cross_v": cross[1], "length": 0}

    def step(self, ids, states, rows):
        """Ids [B, T], one state per row -> logits [B, R, V] at the token rows asked for, and their hidden [B, R, D]."""
        if self.native is not None and not tapped() and (found := self.native.step(ids, states, rows)) is not None:
            return found
        hidden = self.model.decoder(ids, states)[:, rows]
        return self.model.decoder.logits(hidden), hidden

    def align(self, ids, state, heads):
        """Ids [1, T] from the start -> (cross-attention scores before softmax [N, T, F], logits [T, V])."""
        if self.native is not None and not tapped() and (found := self.native.align(ids, state, heads)) is not None:
            return found
        scores = []
        hidden = self.model.decoder(ids, [state], heads, scores)
        ordered = sorted(range(len(heads)), key=lambda i: heads[i][0])  # layer by layer, as they were computed
        back = sorted(range(len(heads)), key=lambda i: ordered[i])
        return torch.stack([scores[i] for i in back]), self.model.decoder.logits(hidden)[0]
