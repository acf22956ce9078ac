"""A tokenizer.json as a `tokenizers.Tokenizer`, and no cache of words that outlives it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from izwi_lab.errors import CheckpointError


def read_tokenizer(path: Path) -> Any:
    """The `tokenizers.Tokenizer` of a file, `forgetful`.

    Raises:
        CheckpointError: not there, or damaged.
    """
    from tokenizers import Tokenizer

    if not path.is_file():
        raise CheckpointError(f"{path.parent} has no {path.name}.", hint="Fetch the model again.")
    try:
        return forgetful(Tokenizer.from_file(str(path)))
    except Exception as error:  # tokenizers raises bare Exception
        raise CheckpointError(f"Cannot read {path}: {error}.", hint="Fetch the model again.") from None


def forgetful(tokenizer: Any) -> Any:
    """The same tokenizer, which keeps no words that it has met.

    The BPE of tokenizers 0.23 keeps the pieces of 10,000 words (some MB) for every thread and every tokenizer there
    ever was, until the thread ends (tokenizers/src/models/bpe/model.rs, `BPE_LOCAL_CACHE`). A server's threads never
    do, and models come and go. Without it a prompt of 2,000 characters takes a quarter of a millisecond more.
    """
    resize = getattr(tokenizer.model, "_resize_cache", None)  # other models than BPE and Unigram keep nothing
    if resize is not None:
        resize(0)
    return tokenizer
