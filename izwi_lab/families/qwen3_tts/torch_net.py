"""Qwen3-TTS on torch: talker and code predictor, with the parameter names of the official checkpoint.

Both are the shared decoder run from embeddings. Taps: "talker." and "predictor." before the names of
`families/shared/nets/decoder` (layers.N..., norm, logits); those of the predictor are seen once a code.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import nn

from izwi_lab.families.qwen3_tts import choice_torch, compiled_torch, graph_torch
from izwi_lab.families.qwen3_tts.config import TTSConfig
from izwi_lab.families.shared.nets.decoder import cache, cache_torch
from izwi_lab.families.shared.nets.decoder.torch_net import Decoder
from izwi_lab.families.shared.nets.sampler.rules import Rules
from izwi_lab.families.shared.taps import named_under, tap, tapped


class TextProjection(nn.Module):
    """From the width of the text embedding to the talker's."""

    def __init__(self, c: TTSConfig):
        super().__init__()
        self.linear_fc1 = nn.Linear(c.text_width, c.text_width)
        self.linear_fc2 = nn.Linear(c.text_width, c.talker.hidden_size)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """See the class."""
        return self.linear_fc2(F.silu(self.linear_fc1(x)))


class CodePredictor(nn.Module):
    """The decoder of a frame's other codes, with a head for each."""

    def __init__(self, c: TTSConfig):
        super().__init__()
        rest, width = range(c.codebooks - 1), c.predictor.hidden_size
        tables = nn.ModuleList(nn.Embedding(c.predictor_vocab, c.talker.hidden_size) for _ in rest)
        self.model = Decoder(c.predictor, codec_embedding=tables)  # as wide as the talker
        self.lm_head = nn.ModuleList(nn.Linear(width, c.predictor_vocab, bias=False) for _ in rest)
        if c.projected:
            self.small_to_mtp_projection = nn.Linear(c.talker.hidden_size, width)


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
        self.codec_head = nn.Linear(c.talker.hidden_size, c.talker.vocab_size, bias=False)
        self.code_predictor = CodePredictor(c)


class TTSNet(nn.Module):
    """What the verbs of the family are made of. B batch, T positions, F frames, K codebooks, H talker width.

    On the CPU single positions and the predictor go through the compiled step, on other devices frames are made in one
    go; open taps go through this code.
    """

    def __init__(self, config: TTSConfig):
        super().__init__()
        self.config = config
        self.talker = Talker(config)
        self.compiled, self.whole = None, None
        self._tables = None

    def finalize(self, backend) -> None:
        """After loading: fuse, and describe the weights to the compiled step."""
        self._dtype = backend.torch_dtype
        self.talker.model.finalize(backend)
        self.talker.code_predictor.model.finalize(backend, first=self.config.codebooks)  # it never sees more
        self._tables = one_table(self.talker.code_predictor.model.codec_embedding)
        self._offsets = self.config.predictor_vocab * torch.arange(self.config.codebooks - 1, device=backend.device)
        self.compiled = compiled_torch.compiled(self, backend)
        self.whole = graph_torch.frames(self, backend, self.talker.model._frequencies)

    def weight_bytes(self) -> int:
        """Bytes of all weights as held."""
        return sum(t.nbytes for t in (*self.parameters(), *self.buffers()))

    def state(self, kv_dtype: str | None = None) -> dict:
        """Empty caches of the talker. kv_dtype: None for the compute dtype, or "int8"."""
        return cache.empty(kv_dtype)

    def pool(self, blocks: int, block: int) -> dict:
        """Caches of the talker for paged states: room for `blocks` of `block` positions."""
        like = torch.empty(0, dtype=self._dtype, device=self._offsets.device)
        return cache_torch.pool(self.config.talker, like, blocks, block)

    def predictor_state(self) -> dict:
        """Empty caches of the predictor; it begins anew with every frame."""
        return cache.empty()

    def text(self, ids: torch.Tensor) -> torch.Tensor:
        """Text ids [B, T] -> [B, T, H]."""
        return self.talker.text_projection(self.talker.model.text_embedding(ids).to(self._dtype))

    def codec(self, ids: torch.Tensor) -> torch.Tensor:
        """Ids of the talker's vocabulary [B, T] -> [B, T, H]."""
        return self.talker.model.codec_embedding(ids)

    def frames(self, codes: torch.Tensor) -> torch.Tensor:
        """Codes [B, K, F] -> the sum of their embeddings [B, F, H], rounded once."""
        first, rest = self.codec(codes[:, :1]), codes[:, 1:]
        if self._tables is not None:
            others = F.embedding(rest + self._offsets[:, None], self._tables)
        else:
            tables = self.talker.code_predictor.model.codec_embedding
            others = torch.stack([table(rest[:, i]) for i, table in enumerate(tables)], dim=1)
        return torch.cat((first, others), dim=1).float().sum(dim=1).to(self._dtype)

    def talk(self, x: torch.Tensor, state: dict) -> tuple[torch.Tensor, torch.Tensor]:
        """Embeddings [B, T, H] -> logits [B, V], hidden [B, H] of the last position; the state grows by T."""
        if len(x) == 1 and self._quick(x.shape[1]):
            return self.compiled.talk(x[0], state)
        with named_under("talker."):
            last = self.talker.model.hidden(x.to(self._dtype), state)[:, -1]
            return tap("logits", self.talker.codec_head(last)), last

    def talk_together(self, pieces: Sequence[tuple[torch.Tensor, dict]]) -> tuple[torch.Tensor, torch.Tensor]:
        """As `talk` for pieces (embeddings [T, H], state) of several sequences: logits [N, V], hidden [N, H].

        On the CPU each goes the way it goes alone, so that a frame's step gives the same bits beside others.
        """
        short = [self._quick(len(x)) for x, _ in pieces]
        if all(short):
            return self.compiled.talk_together(pieces)
        if not any(short):
            return self._packed(pieces)
        order = sorted(range(len(pieces)), key=lambda i: not short[i])
        few, many = (self.compiled.talk_together, True), (self._packed, False)
        found = [way([p for p, s in zip(pieces, short, strict=True) if s == kind]) for way, kind in (few, many)]
        back = torch.tensor(order).argsort()
        logits, hidden = (torch.cat([part.float() for part in parts])[back] for parts in zip(*found, strict=True))
        return logits, hidden

    def _quick(self, positions: int) -> bool:
        return self.compiled is not None and not tapped() and self.compiled.serves(positions)

    def _packed(self, pieces: Sequence[tuple[torch.Tensor, dict]]) -> tuple[torch.Tensor, torch.Tensor]:
        with named_under("talker."):
            rows, states = zip(*((x.to(self._dtype), state) for x, state in pieces), strict=True)
            last = torch.stack([x[-1] for x in self.talker.model.hidden_together(rows, states)])
            return tap("logits", self.talker.codec_head(last)), last

    def predict(self, hidden: torch.Tensor, c0: int, choose: Callable[[torch.Tensor, int], int]) -> list[int]:
        """The K codes of a frame. hidden: [1, H] of the position before it; c0: its code of codebook 0.

        choose: draws the code of codebook 1, 2 ... K - 1 from logits [1, V] and that number.
        """
        return self.predict_together([hidden], [c0], lambda logits, index: [choose(logits, index)])[0]

    def predict_together(
        self,
        hidden: Sequence[torch.Tensor],
        firsts: Sequence[int],
        choose: Callable[[torch.Tensor, int], Sequence[int] | torch.Tensor],
    ) -> list[list[int]]:
        """As `predict` for frames of several sequences. hidden: of each [1, H]; choose: from logits [N, V].

        What it chooses may stay on the device, [N]: then the host waits once, in the end.
        """
        if self.compiled is not None and not tapped() and self.compiled.ready():
            return self.compiled.predict_together(hidden, firsts, choose)
        device, state = hidden[0].device, self.predictor_state()
        codes = [torch.tensor(firsts, device=device)]
        before = torch.cat([h.to(self._dtype) for h in hidden])
        x = torch.stack((before, self.codec(codes[0])), dim=1)
        for index in range(1, self.config.codebooks):
            codes.append(torch.as_tensor(choose(self.predictor_logits(x, index, state), index), device=device))
            if index < self.config.codebooks - 1:
                x = self.talker.code_predictor.model.codec_embedding[index - 1](codes[-1][:, None])
        return torch.stack(codes, dim=1).tolist()

    def chosen(
        self, logits: torch.Tensor, rules: Sequence[Rules], shares: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """A code for each row of logits [N, V], and the largest logit of each, [N], on their device.

        rules: of each row, plain; shares: its random number, int64 [N], of 2^31.
        """
        return choice_torch.chosen(logits, rules, shares)

    def frame(
        self,
        hidden: torch.Tensor,
        c0: int,
        row: torch.Tensor | None,
        state: dict,
        rules: Rules,
        shares: Callable[[], Sequence[int]],
    ) -> graph_torch.Made | None:
        """`predict` and `talk` of a frame in one go, the codes chosen on the device.

        Args:
            hidden: [1, H] of the position before the frame.
            c0: its code of codebook 0.
            row: what is added to the sum of its embeddings, [1, 1, H]; None leaves the talker out.
            state: of the talker; it grows by 1, unless the talker is left out.
            rules: of the predictor.
            shares: draws the random numbers of the K - 1 choices, of 2^31; only called if frames are made here.

        Returns:
            The K codes, the largest logit of each choice, and the talker's (logits [1, V], hidden [1, H]) or None.
            None alone on the CPU and under open taps: `predict` and `talk` then serve better.
        """
        if self.whole is None or tapped():
            return None
        return self.whole.run(hidden, c0, row, state, rules, shares())

    def predictor_logits(self, x: torch.Tensor, index: int, state: dict) -> torch.Tensor:
        """What the predictor reads, [B, T, H] -> logits [B, V] of codebook `index`; the state grows by T."""
        part = self.talker.code_predictor
        with named_under("predictor."):
            x = part.small_to_mtp_projection(x) if self.config.projected else x
            return tap("logits", part.lm_head[index - 1](part.model.hidden(x, state)[:, -1]))


def one_table(embeddings: nn.ModuleList) -> torch.Tensor | None:
    """Embeddings below each other; their weights become views. None where one is quantised."""
    if not all(type(e) is nn.Embedding for e in embeddings):
        return None
    whole = torch.cat([e.weight for e in embeddings])
    for e, part in zip(embeddings, whole.split([len(e.weight) for e in embeddings]), strict=True):
        e.weight = nn.Parameter(part, requires_grad=False)
    return whole
