"""Qwen3-TTS on MLX: talker and code predictor, with the parameter names of the official checkpoint.

Both are the shared decoder run from embeddings. Taps: "talker." and "predictor." before the names of
`families/shared/nets/decoder` (layers.N..., norm, logits); those of the predictor are seen once a code.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_flatten

from izwi_lab.families.qwen3_tts import choice_mlx
from izwi_lab.families.qwen3_tts.config import TTSConfig
from izwi_lab.families.shared.nets.decoder import cache, cache_mlx
from izwi_lab.families.shared.nets.decoder.mlx_net import Decoder, Dense
from izwi_lab.families.shared.nets.sampler.mlx_net import Sampler
from izwi_lab.families.shared.nets.sampler.rules import Rules
from izwi_lab.families.shared.taps import named_under, tap, tapped

Made = tuple[list[int], list[float], tuple[mx.array, mx.array] | None]


class TextProjection(nn.Module):
    """From the width of the text embedding to the talker's."""

    def __init__(self, c: TTSConfig):
        super().__init__()
        self.linear_fc1 = Dense(c.text_width, c.text_width)
        self.linear_fc2 = Dense(c.text_width, c.talker.hidden_size)

    def __call__(self, x: mx.array) -> mx.array:
        """See the class."""
        return self.linear_fc2(nn.silu(self.linear_fc1(x)))


class CodePredictor(nn.Module):
    """The decoder of a frame's other codes, with a head for each."""

    def __init__(self, c: TTSConfig):
        super().__init__()
        rest, width = range(c.codebooks - 1), c.predictor.hidden_size
        tables = [nn.Embedding(c.predictor_vocab, c.talker.hidden_size) for _ in rest]
        self.model = Decoder(c.predictor, codec_embedding=tables)  # as wide as the talker
        self.lm_head = [Dense(width, c.predictor_vocab, bias=False) for _ in rest]
        if c.projected:
            self.small_to_mtp_projection = Dense(c.talker.hidden_size, width)


class Talker(nn.Module):
    """The decoder of codebook 0, and the code predictor."""

    def __init__(self, c: TTSConfig):
        super().__init__()
        self.model = Decoder(
            c.talker,
            text_embedding=nn.Embedding(c.text_vocab, c.text_width),
            codec_embedding=nn.Embedding(c.talker.vocab_size, c.talker.hidden_size),
        )
        self.text_projection = TextProjection(c)
        self.codec_head = Dense(c.talker.hidden_size, c.talker.vocab_size, bias=False)
        self.code_predictor = CodePredictor(c)


class TTSNet(nn.Module):
    """What the verbs of the family are made of. B batch, T positions, F frames, K codebooks, H talker width."""

    def __init__(self, config: TTSConfig):
        super().__init__()
        self.config = config
        self.talker = Talker(config)
        self.whole = False

    def finalize(self, backend) -> None:
        """After loading: what every step needs, once; see `Decoder.finalize`."""
        part = self.talker.code_predictor
        self._dtype = backend.mlx_dtype
        self.whole = backend.device != "cpu"
        self.talker.model.finalize(backend)
        part.model.finalize(backend)
        projection = [part.small_to_mtp_projection] if self.config.projected else []
        text = self.talker.text_projection.leaf_modules().values()
        for module in (*text, self.talker.codec_head, *part.lm_head, *projection):
            if isinstance(module, Dense):
                module.finalize(backend)

    def weight_bytes(self) -> int:
        """Bytes of all weights as held."""
        return sum(p.nbytes for _, p in tree_flatten(self.parameters()))

    def state(self, kv_dtype: str | None = None) -> dict:
        """Empty caches of the talker. kv_dtype: None for the compute dtype, or "int8"."""
        return cache.empty(kv_dtype)

    def pool(self, blocks: int, block: int) -> dict:
        """Caches of the talker for paged states: room for `blocks` of `block` positions."""
        return cache_mlx.pool(self.config.talker, mx.zeros(0, self._dtype), blocks, block)

    def predictor_state(self) -> dict:
        """Empty caches of the predictor; it begins anew with every frame."""
        return cache.empty()

    def text(self, ids: mx.array) -> mx.array:
        """Text ids [B, T] -> [B, T, H]."""
        return self.talker.text_projection(self.talker.model.text_embedding(ids).astype(self._dtype))

    def codec(self, ids: mx.array) -> mx.array:
        """Ids of the talker's vocabulary [B, T] -> [B, T, H]."""
        return self.talker.model.codec_embedding(ids)

    def frames(self, codes: mx.array) -> mx.array:
        """Codes [B, K, F] -> the sum of their embeddings [B, F, H], rounded once."""
        tables = (self.talker.model.codec_embedding, *self.talker.code_predictor.model.codec_embedding)
        every = mx.stack([table(codes[:, i]) for i, table in enumerate(tables)], axis=1)
        return every.astype(mx.float32).sum(axis=1).astype(self._dtype)

    def talk(self, x: mx.array, state: dict) -> tuple[mx.array, mx.array]:
        """Embeddings [B, T, H] -> logits [B, V], hidden [B, H] of the last position; the state grows by T."""
        with named_under("talker."):
            last = self.talker.model.hidden(x.astype(self._dtype), state)[:, -1]
            return tap("logits", self.talker.codec_head(last)), last

    def talk_together(self, pieces: Sequence[tuple[mx.array, dict]]) -> tuple[mx.array, mx.array]:
        """As `talk` for pieces (embeddings [T, H], state) of several sequences: logits [N, V], hidden [N, H]."""
        with named_under("talker."):
            rows, states = zip(*((x.astype(self._dtype), state) for x, state in pieces), strict=True)
            last = mx.stack([x[-1] for x in self.talker.model.hidden_together(rows, states)])
            return tap("logits", self.talker.codec_head(last)), last

    def predict(self, hidden: mx.array, c0: int, choose: Callable[[mx.array, int], int]) -> list[int]:
        """The K codes of a frame. hidden: [1, H] of the position before it; c0: its code of codebook 0.

        choose: draws the code of codebook 1, 2 ... K - 1 from logits [1, V] and that number.
        """
        return self.predict_together([hidden], [c0], lambda logits, index: [choose(logits, index)])[0]

    def predict_together(
        self,
        hidden: Sequence[mx.array],
        firsts: Sequence[int],
        choose: Callable[[mx.array, int], Sequence[int] | mx.array],
    ) -> list[list[int]]:
        """As `predict` for frames of several sequences. hidden: of each [1, H]; choose: from logits [N, V].

        What it chooses may be native, [N]: then the host waits once, in the end.
        """
        codes, state = [mx.array(firsts)], self.predictor_state()
        before = mx.concatenate([h.astype(self._dtype) for h in hidden])
        x = mx.stack([before, self.codec(codes[0])], axis=1)
        for index in range(1, self.config.codebooks):
            codes.append(mx.array(choose(self.predictor_logits(x, index, state), index)).astype(mx.int32))
            if index < self.config.codebooks - 1:
                x = self.talker.code_predictor.model.codec_embedding[index - 1](codes[-1][:, None])
        return mx.stack(codes, axis=1).tolist()

    def chosen(self, logits: mx.array, rules: Sequence[Rules], shares: mx.array) -> tuple[mx.array, mx.array]:
        """A code for each row of logits [N, V], and the largest logit of each, [N]. See torch_net.py."""
        return choice_mlx.chosen(logits, rules, shares)

    def frame(
        self,
        hidden: mx.array,
        c0: int,
        row: mx.array | None,
        state: dict,
        rules: Rules,
        shares: Callable[[], Sequence[int]],
    ) -> Made | None:
        """`predict` and `talk` of a frame, the codes chosen on the device: the host waits once. See torch_net.py.

        None on the CPU, where nothing is waited for, and under open taps.
        """
        if not self.whole or tapped():
            return None
        sampler, numbers, past = Sampler(), shares(), self.predictor_state()
        codes, tops = [mx.array(c0)], []
        x = mx.concatenate([hidden[:, None].astype(self._dtype), self.codec(mx.array([[c0]]))], axis=1)
        for index in range(1, self.config.codebooks):
            if index > 1:
                x = self.talker.code_predictor.model.codec_embedding[index - 2](codes[-1].reshape(1, 1))
            logits = self.predictor_logits(x, index, past)
            code, top = sampler.chosen(logits[0], rules, numbers[index - 1])
            codes.append(code.astype(mx.int32))
            tops.append(top)
        together, best = mx.stack(codes), mx.stack(tops)
        read = None if row is None else self.talk(self.frames(together[None, :, None]) + row, state)
        mx.eval(together, best, read)
        return together.tolist(), best.tolist(), read

    def predictor_logits(self, x: mx.array, index: int, state: dict) -> mx.array:
        """What the predictor reads, [B, T, H] -> logits [B, V] of codebook `index`; the state grows by T."""
        part = self.talker.code_predictor
        with named_under("predictor."):
            x = part.small_to_mtp_projection(x) if self.config.projected else x
            return tap("logits", part.lm_head[index - 1](part.model.hidden(x, state)[:, -1]))
