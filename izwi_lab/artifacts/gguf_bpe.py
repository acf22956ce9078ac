"""The two kinds of BPE that GGUF files hold, as a `tokenizers.Tokenizer`: byte-level, and SentencePiece's."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from izwi_lab.errors import CheckpointError

_NORMAL = 1  # llama.cpp's type of an ordinary token
_SPACE = "\u2581"  # what SentencePiece writes for a space

# The pattern of Qwen2 (and of llama.cpp's "qwen2"): numbers one digit at a time.
QWEN2 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
# Llama 3's: numbers up to three digits at a time.
_LLAMA3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
# llama.cpp's names for it (llama-vocab.cpp): whole pieces in the vocabulary are taken without merging.
LLAMA3 = frozenset({"llama-bpe", "llama3", "llama-v3", "lfm2"})
_GPT2 = frozenset({"gpt-2", "smollm"})


def byte_level(tokens: Sequence[str], metadata: Mapping[str, Any]) -> Any:
    """GPT-2's BPE with the pre-tokenizer that the metadata names.

    Raises:
        CheckpointError: no merges, or another pre-tokenizer.
    """
    from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers

    kind = metadata.get("tokenizer.ggml.pre", "default")
    if kind not in _GPT2 | LLAMA3 | {"qwen2"}:
        known = ", ".join(sorted(_GPT2 | LLAMA3 | {"qwen2"}))
        raise CheckpointError(f"Unknown pre-tokenizer {kind!r} in the GGUF file.", hint=f"Known: {known}.")
    if "tokenizer.ggml.merges" not in metadata:
        raise CheckpointError("The GGUF file lacks 'tokenizer.ggml.merges'.", hint="Fetch the model again.")
    merges = [tuple(m.split(" ", 1)) for m in metadata["tokenizer.ggml.merges"]]
    vocab = {t: i for i, t in enumerate(tokens)}
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=merges, ignore_merges=kind in LLAMA3))
    tokenizer.decoder = decoders.ByteLevel()
    if kind in _GPT2:
        digits = [pre_tokenizers.Digits(individual_digits=True)] if kind == "smollm" else []
        parts = [*digits, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)]
    else:
        if kind == "qwen2":
            tokenizer.normalizer = normalizers.NFC()
        parts = [
            pre_tokenizers.Split(Regex(QWEN2 if kind == "qwen2" else _LLAMA3), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(parts)
    return tokenizer


def sentence_piece(tokens: Sequence[str], types: Sequence[int], metadata: Mapping[str, Any]) -> Any:
    """SentencePiece's BPE, with bytes for what has no token.

    Raises:
        CheckpointError: no scores, or not one for each token.
    """
    from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers

    scores = metadata.get("tokenizer.ggml.scores")
    if scores is None or len(scores) != len(tokens):
        raise CheckpointError(
            f"The GGUF file has {0 if scores is None else len(scores)} scores for {len(tokens)} tokens.",
            hint="Fetch the model again.",
        )
    unknown = int(metadata.get("tokenizer.ggml.unknown_token_id", 0))
    bpe = models.BPE(
        vocab={t: i for i, t in enumerate(tokens)},
        merges=_merges(tokens, types, np.asarray(scores, np.float32)),
        unk_token=tokens[unknown],
        fuse_unk=True,
        byte_fallback=True,
    )
    tokenizer = Tokenizer(bpe)
    prefix = bool(metadata.get("tokenizer.ggml.add_space_prefix", True))
    replaced = normalizers.Replace(" ", _SPACE)
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend(_SPACE), replaced]) if prefix else replaced
    tokenizer.pre_tokenizer = pre_tokenizers.Split(" ", "merged_with_previous")
    strip = [decoders.Strip(" ", 1, 0)] if prefix else []
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace(_SPACE, " "), decoders.ByteFallback(), decoders.Fuse(), *strip]
    )
    return tokenizer


def _merges(tokens: Sequence[str], types: Sequence[int], scores: np.ndarray) -> list[tuple[str, str]]:
    """Every split of a normal token into two normal tokens, the best score first; of one token the longest left first.

    Tokens are taken in the order of their scores, so that half a million pairs need not be sorted.
    """
    plain = np.flatnonzero(np.asarray(types) == _NORMAL)
    ordered = [tokens[i] for i in plain[np.argsort(-scores[plain], kind="stable")].tolist()]
    normal, found = frozenset(ordered), []
    for token in ordered:
        for cut in range(len(token) - 1, 0, -1):
            left = token[:cut]
            if left in normal and (right := token[cut:]) in normal:
                found.append((left, right))
    return found
