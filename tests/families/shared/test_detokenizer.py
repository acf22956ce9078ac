"""Detokenising: whole characters only, equal to the tokenizer's own decoding, and stop strings over pieces."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

from izwi_lab.families.shared.detokenizer import Detokenizer, StopStrings, TokenBytes, detokenize


def byte_level() -> Tokenizer:
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE(vocab={c: i for i, c in enumerate(letters)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken("<|end|>", special=True)])
    return tokenizer


def byte_fallback() -> Tokenizer:
    vocab = {"<unk>": 0, "\u2581": 1, **{f"<0x{b:02X}>": b + 2 for b in range(256)}}
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=[], unk_token="<unk>", byte_fallback=True))
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    return tokenizer


BYTES, FALLBACK = byte_level(), byte_fallback()


@settings(max_examples=200, deadline=None)
@given(st.text(max_size=40))
def test_any_text_comes_back_in_whole_characters(text):
    token_bytes, ids = TokenBytes(BYTES), BYTES.encode(text).ids
    one = Detokenizer(token_bytes)
    pieces = [one.push(i) for i in ids]
    assert "".join(pieces) == text == detokenize(token_bytes, ids)
    assert "\ufffd" in text or not any("\ufffd" in p for p in pieces)


@settings(max_examples=100, deadline=None)
@given(st.text(max_size=20).filter(lambda t: not t.startswith(" ")))
def test_byte_fallback_equals_the_tokenizers_own_decoding(text):
    ids = [b + 2 for b in (" " + text).encode()]
    assert detokenize(TokenBytes(FALLBACK), ids) == text


def test_broken_bytes_are_replaced_once_decided_and_incomplete_ones_dropped():
    ids = {b: BYTES.token_to_id(pre_tokenizers.ByteLevel(add_prefix_space=False).pre_tokenize_str("é")[0][0][0])
           for b in "é"}  # fmt: skip
    first = ids["é"]  # 0xC3, the first byte of é
    a = BYTES.encode("a").ids[0]
    one = Detokenizer(TokenBytes(BYTES))
    assert [one.push(first), one.push(a)] == ["", "\ufffda"]
    assert detokenize(TokenBytes(BYTES), [a, first]) == "a"


def test_control_tokens_show_nothing():
    assert detokenize(TokenBytes(BYTES), BYTES.encode("a<|end|>b").ids) == "ab"


def test_cost_is_linear():
    token_bytes = TokenBytes(BYTES)
    one = Detokenizer(token_bytes)
    ids = BYTES.encode("é" * 2000).ids
    assert sum(len(one.push(i)) for i in ids) == 2000  # every character once, whatever came before


@pytest.mark.parametrize(
    ("pieces", "stop", "shown", "found"),
    [
        (["Hel", "lo ST", "OP now"], ["STOP"], "Hello ", "STOP"),
        (["ab", "ac", "ab"], ["abac!"], "abacab", None),
        (["one\n", "\ntwo"], ["\n\n"], "one", "\n\n"),
        (["xy"], [], "xy", None),
        (["aab"], ["ab", "b"], "a", "ab"),
    ],
)
def test_stop_strings(pieces, stop, shown, found):
    stops = StopStrings(stop)
    out = "".join(stops.push(p) for p in pieces) + stops.flush()
    assert (out, stops.found) == (shown, found)


@settings(max_examples=200, deadline=None)
@given(st.text("ab", max_size=20), st.lists(st.integers(1, 3), max_size=20), st.text("ab", min_size=1, max_size=4))
def test_stop_strings_do_not_depend_on_the_pieces(text, sizes, stop):
    stops, out, at = StopStrings([stop]), "", 0
    for size in [*sizes, len(text)]:
        out += stops.push(text[at : at + size])
        at += size
    assert out + stops.flush() == text.split(stop)[0]
