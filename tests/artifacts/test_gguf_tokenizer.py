"""Tokenizers built from GGUF metadata: byte-level BPE of each known kind, SentencePiece's BPE, what they begin with."""

from __future__ import annotations

import itertools
import os

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import pre_tokenizers

from izwi_lab.artifacts.gguf_tokenizer import build_tokenizer, gguf_tokenizer
from izwi_lab.errors import CheckpointError

LETTERS = sorted(pre_tokenizers.ByteLevel.alphabet())
CONTROL = ["<|endoftext|>", "<|startoftext|>", "<|im_end|>"]
PIECES = ["Ġt", "th", "Ġth", "he", "Ġthe", "12", "123", "xyz"]


def byte_level(pre, **more):
    tokens = [*CONTROL, *LETTERS, *PIECES, "<think>"]
    types = [3] * len(CONTROL) + [1] * (len(LETTERS) + len(PIECES)) + [4]
    fields = dict(
        model="gpt2", pre=pre, tokens=tokens, token_type=types, bos_token_id=1, eos_token_id=2,
        merges=["Ġ t", "t h", "Ġt h", "h e", "Ġth e", "1 2", "12 3"],
    ) | more  # fmt: skip
    return build_tokenizer({f"tokenizer.ggml.{k}": v for k, v in fields.items() if v is not None})


@pytest.mark.parametrize(
    ("pre", "numbers"),
    [
        ("smollm", ["1", "2", "3"]),
        ("qwen2", ["1", "2", "3"]),
        ("gpt-2", ["123"]),
        ("llama-bpe", ["123"]),
        ("lfm2", ["123"]),
    ],
)
def test_each_kind_splits_as_it_should(pre, numbers):
    tokenizer = byte_level(pre, add_bos_token=False)
    assert tokenizer.encode(" the123").tokens == ["Ġthe", *numbers]
    assert tokenizer.decode(tokenizer.encode(" the naïve 日本 \n\n").ids) == " the naïve 日本 \n\n"


def test_llama_3_takes_whole_pieces_and_begins_texts():
    for pre in ("llama-bpe", "lfm2"):
        tokenizer = byte_level(pre)
        assert tokenizer.encode("xyz").tokens == ["<|startoftext|>", "xyz"], "no merges lead to it"
        assert tokenizer.encode("xyz", add_special_tokens=False).tokens == ["xyz"]
    assert byte_level("qwen2").encode("xyz").tokens == ["x", "y", "z"]


def test_the_file_says_what_a_text_begins_and_ends_with():
    both = byte_level("qwen2", add_bos_token=True, add_eos_token=True)
    assert both.encode("t").tokens == ["<|startoftext|>", "t", "<|im_end|>"]
    assert byte_level("lfm2", add_bos_token=False).encode("t").tokens == ["t"]
    with pytest.raises(CheckpointError, match="999 as its bos"):
        byte_level("lfm2", bos_token_id=999)


def test_control_tokens_are_special_and_those_of_the_user_are_not():
    tokenizer = byte_level("qwen2")
    assert tokenizer.encode("<|im_end|><think>t").tokens == ["<|im_end|>", "<think>", "t"]
    kinds = {t.content: t.special for t in tokenizer.get_added_tokens_decoder().values()}
    assert kinds == {**dict.fromkeys(CONTROL, True), "<think>": False}


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"pre": "deepseek"}, "Unknown pre-tokenizer 'deepseek'"),
        ({"merges": None}, r"lacks 'tokenizer\.ggml\.merges'"),
        ({"model": "bert"}, "Unknown tokenizer 'bert'"),
        ({"model": "llama"}, r"has 0 scores for \d+ tokens"),
        ({"token_type": [1]}, "1 types"),
    ],
)
def test_what_cannot_be_read(wrong, message):
    with pytest.raises(CheckpointError, match=message):
        byte_level(**{"pre": "qwen2"} | wrong)


# --- SentencePiece -----------------------------------------------------------------------------------------------
SPACE = "\u2581"
NORMAL = [SPACE, *"abcdé", "ab", "bc", "abc", "aa", "cd", "dd", SPACE + "a", SPACE + SPACE, "cc", "abcd", "aaa"]
SCORES = {t: -float(i) for i, t in enumerate([*NORMAL[6:], *NORMAL[:6]])}
BYTES = [f"<0x{b:02X}>" for b in range(256)]


def sentence_piece(**more):
    tokens = ["<unk>", "<s>", "</s>", *BYTES, *NORMAL, "  ", "\n\n"]
    types = [2, 3, 3, *[6] * 256, *[1] * len(NORMAL), 4, 4]
    fields = dict(
        model="llama", pre="default", tokens=tokens, token_type=types, bos_token_id=1, eos_token_id=2,
        unknown_token_id=0, scores=[SCORES.get(t, -1000.0) for t in tokens], add_space_prefix=False,
    ) | more  # fmt: skip
    return build_tokenizer({f"tokenizer.ggml.{k}": v for k, v in fields.items()})


def by_the_book(text: str) -> list[str]:
    """SentencePiece's BPE: of all neighbours that together are a token join the best, the leftmost first."""
    parts = list(text.replace(" ", SPACE))
    while True:
        pairs = [(SCORES[a + b], -i) for i, (a, b) in enumerate(itertools.pairwise(parts)) if a + b in SCORES]
        if not pairs:
            break
        at = -max(pairs)[1]
        parts[at : at + 2] = [parts[at] + parts[at + 1]]
    return [
        piece for part in parts for piece in ([part] if part in SCORES else [f"<0x{b:02X}>" for b in part.encode()])
    ]


@settings(max_examples=200, deadline=None)
@given(st.text("abcdé z日", max_size=14).filter(lambda t: "  " not in t))
def test_merges_follow_the_scores(text):
    assert TOKENIZER.encode(text, add_special_tokens=False).tokens == by_the_book(text)
    assert TOKENIZER.decode(TOKENIZER.encode(text).ids) == text


TOKENIZER = sentence_piece()


def test_tokens_of_the_user_come_first_and_the_longest_of_them():
    assert TOKENIZER.encode("a  b\n\nc").tokens == ["<s>", "a", "  ", "b", "\n\n", "c"]
    assert TOKENIZER.encode("a\nc").tokens == ["<s>", "a", "<0x0A>", "c"]


def test_a_space_before_the_text_where_the_file_wants_one():
    tokenizer = sentence_piece(add_space_prefix=True)
    assert tokenizer.encode("ab").tokens == ["<s>", SPACE, "ab"]
    assert tokenizer.decode(tokenizer.encode("ab").ids) == "ab"
    assert sentence_piece(add_bos_token=False).encode("ab").tokens == ["ab"]


# --- kept beside the file ----------------------------------------------------------------------------------------
def test_it_is_kept_beside_the_file_and_made_anew_when_the_file_changes(tmp_path, monkeypatch):
    path = tmp_path / "m.gguf"
    path.write_bytes(b"one")
    metadata = {"tokenizer.ggml.model": "gpt2", "tokenizer.ggml.pre": "qwen2", "tokenizer.ggml.tokens": LETTERS}
    metadata["tokenizer.ggml.merges"] = []
    first = gguf_tokenizer(path, metadata)
    (kept,) = tmp_path.glob("m.gguf.tokenizer-*.json")
    with monkeypatch.context() as patched:
        patched.setattr("izwi_lab.artifacts.gguf_tokenizer.build_tokenizer", lambda _: pytest.fail("built again"))
        assert gguf_tokenizer(path, metadata).encode("abc").ids == first.encode("abc").ids
    kept.write_text("{}")
    assert gguf_tokenizer(path, metadata).encode("abc").ids == first.encode("abc").ids, "a damaged one is made anew"
    os.utime(path, ns=(1, 1))
    gguf_tokenizer(path, metadata)
    (anew,) = tmp_path.glob("m.gguf.tokenizer-*.json")
    assert anew != kept, "the older one is gone"
