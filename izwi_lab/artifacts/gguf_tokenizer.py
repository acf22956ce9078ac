"""The tokenizer inside a GGUF file as a `tokenizers.Tokenizer`; built once, then read from a tokenizer.json beside it.

Token types as in llama.cpp: 1 normal, 2 unknown, 3 control, 4 user defined, 5 unused, 6 byte.
"""

from __future__ import annotations

import glob
import hashlib
import logging
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from izwi_lab.artifacts.atomic import written
from izwi_lab.artifacts.gguf_bpe import LLAMA3, byte_level, sentence_piece
from izwi_lab.artifacts.tokenizer_json import forgetful, read_tokenizer
from izwi_lab.errors import ArtifactError, CheckpointError

_log = logging.getLogger(__name__)
_FORM = 2  # raised when what is built changes
_CONTROL, _USER = 3, 4


def gguf_tokenizer(path: Path, metadata: Mapping[str, Any]) -> Any:
    """The tokenizer of the GGUF file at `path` with that metadata.

    Kept as "<file>.tokenizer-<key>.json" beside the file (the key is of its size and date), where it can be written;
    the second load reads that.

    Raises:
        CheckpointError: a kind of tokenizer that is not known here.
    """
    kept = _kept_path(path)
    if kept.exists():
        try:
            return read_tokenizer(kept)
        except CheckpointError as error:
            _log.warning("The tokenizer kept beside the file is made anew: %s", error)
    tokenizer = forgetful(build_tokenizer(metadata))
    if os.access(path.parent, os.W_OK):
        try:
            with written(kept) as file:
                file.write(tokenizer.to_str().encode())
            for older in set(path.parent.glob(f"{glob.escape(path.name)}.tokenizer-*.json")) - {kept}:
                older.unlink(missing_ok=True)
        except ArtifactError as error:  # a full disk costs speed, not the model
            _log.warning("The tokenizer is not kept: %s", error)
    return tokenizer


def _kept_path(path: Path) -> Path:
    stat = path.stat()
    key = hashlib.sha256(f"{_FORM}|{stat.st_size}|{stat.st_mtime_ns}".encode()).hexdigest()[:12]
    return path.with_name(f"{path.name}.tokenizer-{key}.json")


def build_tokenizer(metadata: Mapping[str, Any]) -> Any:
    """From the metadata alone. Known kinds: gpt2 (byte-level BPE) and llama (SentencePiece BPE).

    Control tokens and those the user defined are found in the text before anything else, the longest first; only
    control tokens are special. Encoding with special tokens puts the begin token first where the file says so.

    Raises:
        CheckpointError: another kind, or lists that do not fit together.
    """
    from tokenizers import AddedToken

    model = metadata.get("tokenizer.ggml.model")
    if model not in ("gpt2", "llama") or "tokenizer.ggml.tokens" not in metadata:
        raise CheckpointError(f"Unknown tokenizer {model!r} in the GGUF file.", hint="Known: gpt2, llama.")
    tokens: list[str] = metadata["tokenizer.ggml.tokens"]
    types = [int(t) for t in metadata.get("tokenizer.ggml.token_type", [1] * len(tokens))]
    if len(types) != len(tokens) or len(set(tokens)) != len(tokens):
        raise CheckpointError(f"The GGUF file lists {len(tokens)} tokens, {len(types)} types, some of them twice.")
    tokenizer = byte_level(tokens, metadata) if model == "gpt2" else sentence_piece(tokens, types, metadata)
    added = [(t, kind) for t, kind in zip(tokens, types, strict=True) if kind in (_CONTROL, _USER)]
    tokenizer.add_special_tokens([AddedToken(t, special=True, normalized=False) for t, k in added if k == _CONTROL])
    tokenizer.add_tokens([AddedToken(t, special=False, normalized=False) for t, k in added if k == _USER])
    _add_ends(tokenizer, tokens, metadata)
    return tokenizer


def _add_ends(tokenizer: Any, tokens: list[str], metadata: Mapping[str, Any]) -> None:
    """The tokens before and after a text. llama.cpp begins by default with SentencePiece and Llama 3's splitting."""
    from tokenizers import processors

    begins = metadata.get("tokenizer.ggml.model") == "llama" or metadata.get("tokenizer.ggml.pre") in LLAMA3
    parts, used = ["$A"], []
    for name, default in (("bos", begins), ("eos", False)):
        number = metadata.get(f"tokenizer.ggml.{name}_token_id")
        if not metadata.get(f"tokenizer.ggml.add_{name}_token", default) or number is None:
            continue
        if not 0 <= int(number) < len(tokens):
            raise CheckpointError(f"The GGUF file gives {number} as its {name} token; it has {len(tokens)}.")
        used.append((tokens[int(number)], int(number)))
        parts = [used[-1][0], *parts] if name == "bos" else [*parts, used[-1][0]]
    if used:
        tokenizer.post_processor = processors.TemplateProcessing(single=parts, special_tokens=used)
