"""The tokenizer inside a GGUF file as a `tokenizers.Tokenizer`; built once, then read from a tokenizer.json beside it.

Token types as in llama.cpp: 1 normal, 3 control, 4 user defined, 6 byte.
"""

from __future__ import annotations

import hashlib
import logging
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from izwi_lab.artifacts.atomic import written
from izwi_lab.errors import ArtifactError, CheckpointError

_log = logging.getLogger(__name__)
_FORM = 1  # raised when what is built changes
_CONTROL, _USER = 3, 4

# The pattern of Qwen2 (and of llama.cpp's "qwen2"): numbers one digit at a time.
_QWEN2 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
# Llama 3's: numbers up to three digits at a time.
_LLAMA3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)


def gguf_tokenizer(path: Path, metadata: Mapping[str, Any]) -> Any:
    """The tokenizer of the GGUF file at `path` with that metadata.

    Kept as "<file>.tokenizer-<key>.json" beside the file (the key is of its size and date), where it can be written;
    the second load reads that.

    Raises:
        CheckpointError: a kind of tokenizer that is not known here.
    """
    from tokenizers import Tokenizer

    kept = _kept_path(path)
    if kept.exists():
        try:
            return Tokenizer.from_file(str(kept))
        except Exception as error:  # tokenizers raises bare Exception on a damaged file
            _log.warning("%s is damaged and is made anew: %s", kept, error)
    tokenizer = build_tokenizer(metadata)
    if os.access(path.parent, os.W_OK):
        try:
            with written(kept) as file:
                file.write(tokenizer.to_str().encode())
        except ArtifactError as error:  # a full disk costs speed, not the model
            _log.warning("The tokenizer is not kept: %s", error)
    return tokenizer


def _kept_path(path: Path) -> Path:
    stat = path.stat()
    key = hashlib.sha256(f"{_FORM}|{stat.st_size}|{stat.st_mtime_ns}".encode()).hexdigest()[:12]
    return path.with_name(f"{path.name}.tokenizer-{key}.json")


def build_tokenizer(metadata: Mapping[str, Any]) -> Any:
    """From the metadata alone. Known kinds: gpt2 (byte-level BPE) and llama (SentencePiece BPE)."""
    from tokenizers import AddedToken

    model = metadata.get("tokenizer.ggml.model")
    if model not in ("gpt2", "llama") or "tokenizer.ggml.tokens" not in metadata:
        raise CheckpointError(f"Unknown tokenizer {model!r} in the GGUF file.", hint="Known: gpt2, llama.")
    tokens: list[str] = metadata["tokenizer.ggml.tokens"]
    types = [int(t) for t in metadata.get("tokenizer.ggml.token_type", [1] * len(tokens))]
    if len(types) != len(tokens) or len(set(tokens)) != len(tokens):
        raise CheckpointError(f"The GGUF file lists {len(tokens)} tokens, {len(types)} types, some of them twice.")
    if model == "gpt2":
        tokenizer = _byte_level(tokens, metadata)
    else:
        tokenizer = _sentence_piece(tokens, types, metadata)
    added = [(t, kind) for t, kind in zip(tokens, types, strict=True) if kind in (_CONTROL, _USER)]
    tokenizer.add_special_tokens([AddedToken(t, special=True, normalized=False) for t, k in added if k == _CONTROL])
    tokenizer.add_tokens([AddedToken(t, special=False, normalized=False) for t, k in added if k == _USER])
    return tokenizer


def _byte_level(tokens: Sequence[str], metadata: Mapping[str, Any]) -> Any:
    from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers

    merges = [tuple(m.split(" ", 1)) for m in metadata["tokenizer.ggml.merges"]]
    tokenizer = Tokenizer(models.BPE(vocab={t: i for i, t in enumerate(tokens)}, merges=merges))
    tokenizer.decoder = decoders.ByteLevel()
    kind = metadata.get("tokenizer.ggml.pre", "default")
    if kind in ("smollm", "gpt-2"):
        digits = [pre_tokenizers.Digits(individual_digits=True)] if kind == "smollm" else []
        parts = [*digits, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)]
    elif kind in ("qwen2", "llama-bpe"):
        pattern = _QWEN2 if kind == "qwen2" else _LLAMA3
        if kind == "qwen2":
            tokenizer.normalizer = normalizers.NFC()
        parts = [
            pre_tokenizers.Split(Regex(pattern), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    else:
        raise CheckpointError(
            f"Unknown pre-tokenizer {kind!r} in the GGUF file.", hint="Known: smollm, gpt-2, qwen2, llama-bpe."
        )
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(parts)
    return tokenizer


def _sentence_piece(tokens: Sequence[str], types: Sequence[int], metadata: Mapping[str, Any]) -> Any:
    """Every split of a normal token into two normal tokens is a merge; better scores merge first."""
    from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers

    scores = metadata["tokenizer.ggml.scores"]
    vocab = {t: i for i, t in enumerate(tokens)}
    normal = {t for t, kind in zip(tokens, types, strict=True) if kind == 1}
    ranked = []
    for token in normal:
        score = -float(scores[vocab[token]])
        for cut in range(1, len(token)):
            left, right = token[:cut], token[cut:]
            if left in normal and right in normal:
                ranked.append((score, vocab[left], vocab[right]))
    ranked.sort()
    merges = [(tokens[left], tokens[right]) for _, left, right in ranked]
    unknown = tokens[int(metadata.get("tokenizer.ggml.unknown_token_id", 0))]
    bpe = models.BPE(vocab=vocab, merges=merges, unk_token=unknown, fuse_unk=True, byte_fallback=True)
    tokenizer = Tokenizer(bpe)
    space = "\u2581"
    prefix = bool(metadata.get("tokenizer.ggml.add_space_prefix", True))
    replaced = normalizers.Replace(" ", space)
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend(space), replaced]) if prefix else replaced
    tokenizer.pre_tokenizer = pre_tokenizers.Split(" ", "merged_with_previous")
    strip = [decoders.Strip(" ", 1, 0)] if prefix else []
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace(space, " "), decoders.ByteFallback(), decoders.Fuse(), *strip]
    )
    return tokenizer
