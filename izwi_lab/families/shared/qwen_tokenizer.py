"""Qwen's byte-level BPE as a `tokenizers.Tokenizer`: from tokenizer.json, else from vocab.json and merges.txt.

Official speech checkpoints ship only the latter, with the added tokens in tokenizer_config.json. What is built here
encodes as transformers' Qwen2Tokenizer does (version 5.23, tokenization_qwen2.py).
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from izwi_lab.artifacts.gguf_bpe import QWEN2
from izwi_lab.artifacts.tokenizer_json import forgetful, read_tokenizer
from izwi_lab.errors import CheckpointError

_MOST_BYTES = 64 << 20  # of a file; Qwen's vocab.json has 2.8 MB
_MOST_TOKENS = 1 << 22
_FETCH = "Fetch the model again."


def qwen_tokenizer(folder: Path) -> Any:
    """The tokenizer of a checkpoint's folder.

    Raises:
        CheckpointError: files missing or damaged, or ids given twice.
    """
    whole = folder / "tokenizer.json"
    if whole.is_file():
        return read_tokenizer(whole)
    if missing := [n for n in ("vocab.json", "merges.txt") if not (folder / n).is_file()]:
        raise CheckpointError(f"{folder} has no tokenizer.json, and no {' or '.join(missing)}.", hint=_FETCH)
    vocab = _vocab(folder / "vocab.json")
    settings = folder / "tokenizer_config.json"
    added = _added(settings, vocab) if settings.is_file() else {}
    return forgetful(_built(folder, vocab, _merges(folder / "merges.txt"), added))


def _built(
    folder: Path, vocab: dict[str, int], merges: list[tuple[str, str]], added: Mapping[int, Mapping[str, Any]]
) -> Any:
    from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers

    # Added tokens are in the vocabulary too: they keep their ids even where ids before them are not in use.
    full = vocab | {str(entry["content"]): i for i, entry in added.items()}
    try:
        tokenizer = Tokenizer(models.BPE(vocab=full, merges=merges))
    except Exception as error:  # a merge of what is no token
        raise CheckpointError(f"The tokenizer in {folder} does not fit together: {error}.", hint=_FETCH) from None
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(QWEN2), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    for _, entry in sorted(added.items()):
        flags = {n: bool(entry.get(n, False)) for n in ("single_word", "lstrip", "rstrip", "normalized", "special")}
        tokenizer.add_tokens([AddedToken(str(entry["content"]), **flags)])
    return tokenizer


def _vocab(path: Path) -> dict[str, int]:
    found = _json(path)
    numbers = set(found.values())
    whole = all(type(i) is int and 0 <= i < _MOST_TOKENS for i in found.values())
    if not found or not whole or len(numbers) != len(found):
        raise CheckpointError(f"{path} is no vocabulary: ids are missing, odd, or given twice.", hint=_FETCH)
    return found


def _merges(path: Path) -> list[tuple[str, str]]:
    lines = _text(path).split("\n")  # not splitlines: other line ends are characters of tokens
    pairs = [tuple(line.rstrip("\r").split(" ")) for line in lines if line.strip() and not line.startswith("#version")]
    if bad := next((p for p in pairs if len(p) != 2), None):
        raise CheckpointError(f"{path} has the merge {' '.join(bad)[:60]!r}; two tokens were expected.", hint=_FETCH)
    return [(p[0], p[1]) for p in pairs]


def _added(path: Path, vocab: Mapping[str, int]) -> dict[int, Mapping[str, Any]]:
    """The added tokens by id. Raises CheckpointError where an id is taken or a text appears twice."""
    listed = _json(path).get("added_tokens_decoder") or {}
    taken, seen, out = set(vocab.values()), set(vocab), {}
    for key, entry in listed.items() if isinstance(listed, Mapping) else ():
        content = entry.get("content") if isinstance(entry, Mapping) else None
        if not str(key).isdecimal() or int(key) >= _MOST_TOKENS or not isinstance(content, str) or not content:
            raise CheckpointError(f"{path} has an added token that makes no sense: {str(key)[:40]!r}.", hint=_FETCH)
        number = int(key)
        if vocab.get(content, number) != number or (content not in vocab and (number in taken or content in seen)):
            raise CheckpointError(f"{path} gives the id {number} or the token {content[:40]!r} twice.", hint=_FETCH)
        taken.add(number)
        seen.add(content)
        out[number] = entry
    return out


def _json(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(_text(path))
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"Cannot read {path}: {error}.", hint=_FETCH) from None
    if not isinstance(value, dict):
        raise CheckpointError(f"{path} is not a JSON object.", hint=_FETCH)
    return value


def _text(path: Path) -> str:
    try:
        if path.stat().st_size > _MOST_BYTES:
            raise CheckpointError(f"{path} is larger than {_MOST_BYTES} bytes.", hint=_FETCH)
        with path.open(encoding="utf-8", newline="") as file:
            return file.read()
    except (OSError, UnicodeDecodeError) as error:
        raise CheckpointError(f"Cannot read {path}: {error}.", hint=_FETCH) from None
