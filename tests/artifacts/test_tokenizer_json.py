"""tokenizer.json files: what is wrong with one is said, and a tokenizer takes what it has seen with it when it goes."""

from __future__ import annotations

import gc

import numpy as np
import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from izwi_lab.artifacts.tokenizer_json import read_tokenizer
from izwi_lab.bench.worker import resident_bytes
from izwi_lab.errors import CheckpointError

ROUNDS, WORDS = 12, 10_000
MOST_BYTES = 8 << 20


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    tokens = sorted(pre_tokenizers.ByteLevel.alphabet())
    made = Tokenizer(models.BPE(vocab={t: i for i, t in enumerate(tokens)}, merges=[]))
    made.pre_tokenizer, made.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    path = tmp_path_factory.mktemp("tokenizer") / "tokenizer.json"
    made.save(str(path))
    return path


@pytest.fixture(scope="module")
def text():
    letters = np.random.default_rng(0).integers(97, 123, (WORDS, 9), dtype=np.uint8)
    return " ".join(row.tobytes().decode() for row in letters)


def growth(read, text):
    """Bytes that stay when so many tokenizers have come, read and gone."""
    read().encode(text)
    gc.collect()
    before = resident_bytes()
    for _ in range(ROUNDS):
        read().encode(text)
    gc.collect()
    return resident_bytes() - before


def test_a_tokenizer_takes_its_words_along(file, text):
    assert growth(lambda: read_tokenizer(file), text) < MOST_BYTES


def test_it_says_what_the_tokenizer_of_the_library_says(file, text):
    assert read_tokenizer(file).encode(text[:9000]).ids == Tokenizer.from_file(str(file)).encode(text[:9000]).ids


@pytest.mark.parametrize("content", ["", "{}", "[", '{"model": 3}'])
def test_a_damaged_file_is_named(tmp_path, content):
    path = tmp_path / "tokenizer.json"
    path.write_text(content)
    with pytest.raises(CheckpointError, match=r"Cannot read .*tokenizer\.json"):
        read_tokenizer(path)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(CheckpointError, match=r"has no tokenizer\.json"):
        read_tokenizer(tmp_path / "tokenizer.json")
