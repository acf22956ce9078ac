"""A follow-up turn reads only what is new, and answers as if it had read everything."""

from __future__ import annotations

import itertools
import threading

import numpy as np
import pytest
from scripted_chat import PLAIN, chat_model, processor_of, says, tokenizer_of
from tiny_text import HYBRID, config, text_model

from izwi_lab.backends.mlx_backend import MLXBackend
from izwi_lab.backends.torch_backend import TorchBackend
from izwi_lab.cancel import CancelToken
from izwi_lab.errors import InvalidInputError
from izwi_lab.families.shared.prompt_cache import PromptCache
from izwi_lab.families.shared.sampling import Sampling
from izwi_lab.families.shared.steps import Prompt
from izwi_lab.families.shared.text_model import TextModel

ROOM = 10**9


class Counting(TextModel):
    """A random net with a tokenizer; `read` counts the ids of its prefills."""

    read = 0

    def prefill(self, session, prompt, *, cancel=None):
        self.read += len(prompt)
        return super().prefill(session, prompt, cancel=cancel)


def counting(layer_types, backend=None, context=900):
    tokenizer = tokenizer_of()
    bare = text_model(config(layer_types, tokenizer.get_vocab_size(), context), backend)
    return Counting(bare.variant, bare.plan, bare.backend, bare.net, bare.config, processor_of(tokenizer, PLAIN))


@pytest.fixture(scope="module", params=["full", "hybrid", "mlx"])
def model(request):
    return counting(HYBRID if request.param == "hybrid" else ("full_attention",) * 2,
                    MLXBackend("cpu") if request.param == "mlx" else TorchBackend())  # fmt: skip


def user(text):
    return {"role": "user", "content": text}


def converse(model, cache, turns, **options):
    """The replies of a conversation, with what each turn read."""
    said, replies = [], []
    for turn in turns:
        said.append(user(turn))
        model.read = 0
        reply = model.generate(said, cache=cache, **options)
        replies.append((reply, model.read))
        said.append({"role": "assistant", "content": reply.text})
    return replies


TURNS = ["Tell me a long story about the sea.", "And then?", "What of the cat?"]


@pytest.mark.parametrize("max_tokens", [7, 60])
def test_a_conversation_reads_only_what_is_new(model, max_tokens):
    cache = PromptCache(ROOM)
    cached = converse(model, cache, TURNS, max_tokens=max_tokens)
    plain = converse(model, None, TURNS, max_tokens=max_tokens)
    for (with_cache, read), (without, whole) in zip(cached, plain, strict=True):
        assert with_cache.tokens == without.tokens and with_cache.text == without.text
        assert with_cache.usage.prompt_tokens == whole == with_cache.usage.cached_tokens + read
        assert without.usage.cached_tokens == 0
    assert cached[0][1] == plain[0][1]
    for earlier, (reply, read) in itertools.pairwise(cached):
        new = reply.usage.prompt_tokens - earlier[0].usage.prompt_tokens
        assert read <= new, "the turn before was read again"


def test_draws_of_a_seed_are_the_same_again_and_read_everything(model):
    hot, cache = Sampling(temperature=1.2, repetition_penalty=1.2), PromptCache(ROOM)
    runs = [converse(model, kept, TURNS, max_tokens=20, sampling=hot, seed=4) for kept in (cache, cache, None)]
    assert [r.tokens for r, _ in runs[0]] == [r.tokens for r, _ in runs[1]] == [r.tokens for r, _ in runs[2]]
    assert all(r.usage.cached_tokens == 0 for run in runs for r, _ in run)
    said = [user(TURNS[0])]
    assert model.generate(said, cache=cache, max_tokens=3, seed=4).usage.cached_tokens, "greedy draws nothing"
    assert model.generate(said, cache=cache, max_tokens=3, sampling=hot).usage.cached_tokens, "no seed, no promise"


def test_an_answer_that_history_rewrites_is_read_again_from_where_it_differs(model):
    cache = PromptCache(ROOM)
    first = [user(TURNS[0])]
    model.generate(first, cache=cache, max_tokens=120)
    again = [*first, {"role": "assistant", "content": "Something else entirely."}, user("Go on.")]
    model.read = 0
    reply = model.generate(again, cache=cache, max_tokens=9)
    assert reply.tokens == model.generate(again, max_tokens=9).tokens
    assert reply.usage.cached_tokens >= len(model.tokenize(first)) - 1


def test_two_conversations_with_one_beginning(model):
    cache, system = PromptCache(ROOM), {"role": "system", "content": "You are a helpful assistant. " * 3}
    turns = {name: [system, user(f"{name}?")] for name in "abc"}
    for _ in range(3):
        for name, said in turns.items():
            reply = model.generate(said, cache=cache, max_tokens=5)
            assert reply.tokens == model.generate(said, max_tokens=5).tokens
            if len(said) > 2 or name != "a":
                assert reply.usage.cached_tokens >= len(model.tokenize([system])) - 30
            said += [{"role": "assistant", "content": reply.text}, user("More.")]
        assert reply.usage.cached_tokens >= len(model.tokenize([system])) - 30
    assert len(cache) >= 3, "each conversation kept its own session"
    assert reply.usage.cached_tokens > len(model.tokenize(said[:2]))


def test_the_same_prompt_again_reads_one_id(model):
    cache = PromptCache(ROOM)
    first = model.generate(TURNS[0], cache=cache, max_tokens=5)
    model.read = 0
    second = model.generate(TURNS[0], cache=cache, max_tokens=5)
    assert second.tokens == first.tokens and model.read == 1
    assert len(cache) == 1


def test_it_keeps_to_its_limit_and_drops_the_oldest(model):
    big = PromptCache(ROOM)
    model.generate("one " * 30, cache=big, max_tokens=3)
    one = big.nbytes
    assert one > 0
    cache = PromptCache(int(one * 2.5))
    for word in ("one ", "six ", "red "):
        model.generate(word * 30, cache=cache, max_tokens=3)
        assert cache.nbytes <= cache.limit_bytes
    reads = []
    for word in ("red ", "six ", "one "):
        model.read = 0
        model.generate(word * 30, cache=cache, max_tokens=3)
        reads.append(model.read)
    assert reads[0] == 1 and reads[2] > 50
    none = PromptCache(0)
    model.generate(TURNS[0], cache=none, max_tokens=3)
    assert len(none) == 0 and none.nbytes == 0


def test_stopped_and_failed_answers_leave_it_sane(model, monkeypatch):
    cache, token = PromptCache(ROOM), CancelToken()
    stream = model.stream(TURNS[0], cache=cache, cancel=token, max_tokens=50)
    for _ in range(3):
        next(stream)
    token.cancel()
    assert list(stream)[-1].finish_reason == "cancelled" and len(cache) == 1
    left = model.stream(TURNS[0], cache=cache, max_tokens=50)
    next(left)
    copies = len(cache)  # of the prompt, where the answer could make the session forget its end
    assert copies == ("conv" in model.config.layer_types), "a session in use is not in the cache"
    left.close()
    assert len(cache) == 1
    reply = model.generate(TURNS[0], cache=cache, max_tokens=9)
    assert reply.tokens == model.generate(TURNS[0], max_tokens=9).tokens

    early = CancelToken()
    early.cancel()
    reply = model.generate(TURNS[0], cache=cache, cancel=early)
    assert (reply.finish_reason, reply.usage.completion_tokens) == ("cancelled", 0)

    def fails(*_, **__):
        raise MemoryError

    with monkeypatch.context() as patch:
        patch.setattr(model, "advance", fails)
        with pytest.raises(MemoryError):
            model.generate(TURNS[0], cache=cache)
    assert len(cache) == copies
    assert model.generate(TURNS[0], cache=cache, max_tokens=9).tokens == model.generate(TURNS[0], max_tokens=9).tokens


def test_a_closed_cache_takes_nothing_back(model):
    cache = PromptCache(ROOM)
    stream = model.stream(TURNS[0], cache=cache, max_tokens=5)
    next(stream)
    cache.close()
    list(stream)
    assert len(cache) == 0
    cache = PromptCache(ROOM)
    model.generate(TURNS[0], cache=cache, max_tokens=5)
    cache.clear()
    assert len(cache) == 0


def test_many_threads_never_share_a_session():
    model, cache = counting(("full_attention",) * 2), PromptCache(ROOM)
    expected = {n: model.generate(f"Question {n}, please.", max_tokens=6).tokens for n in range(4)}
    wrong = []

    def ask(number):
        for _ in range(6):
            reply = model.generate(f"Question {number % 4}, please.", cache=cache, max_tokens=6)
            if reply.tokens != expected[number % 4]:
                wrong.append(number)

    threads = [threading.Thread(target=ask, args=(n,)) for n in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_a_session_given_by_hand_is_left_alone():
    model, cache = says(chat_model(), "abc"), PromptCache(ROOM)
    session = model.session(max_tokens=9)
    reply = model.generate("x", session=session, cache=cache)
    assert reply.text == "abc" and len(cache) == 0
    says(model, "d")
    again = model.generate(Prompt(np.array([5, 6], np.int32)), session=session)
    assert again.usage.prompt_tokens == reply.usage.prompt_tokens + reply.usage.completion_tokens + 2


def test_a_session_never_serves_another_model():
    one, other, cache = counting(("full_attention",) * 2), counting(("full_attention",) * 2), PromptCache(ROOM)
    one.generate(TURNS[0], cache=cache, max_tokens=3)
    assert other.generate(TURNS[0], cache=cache, max_tokens=3).usage.cached_tokens == 0 and len(cache) == 2
    assert one.generate(TURNS[0], cache=cache, max_tokens=3).usage.cached_tokens > 0


def test_limits_are_checked():
    for limit in (-1, 1.5, None, True):
        with pytest.raises(InvalidInputError, match="limit_bytes"):
            PromptCache(limit)
