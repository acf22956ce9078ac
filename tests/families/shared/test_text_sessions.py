"""Sessions of text models over every kind of cache: back, forked, saved, cancelled; scoring and checking drafts."""

from __future__ import annotations

import dataclasses
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from tiny_text import HYBRID, VARIANT, config, text_model

from izwi_lab.backends.mlx_backend import MLXBackend
from izwi_lab.backends.torch_backend import TorchBackend
from izwi_lab.cancel import CancelToken
from izwi_lab.errors import Cancelled, CheckpointError, InvalidInputError
from izwi_lab.families.shared.nets.decoder.config import FULL, SLIDING
from izwi_lab.families.shared.sampling import Sampling, sample_token
from izwi_lab.families.shared.steps import Prompt

LONG = [*range(90), *range(60, 5, -1)] * 2  # 290 ids: past the rings of 64 and 256 positions
PUNISHED = Sampling(temperature=0.9, repetition_penalty=1.4, frequency_penalty=0.3, presence_penalty=0.2)


@pytest.fixture(scope="module", params=["torch", "mlx"])
def model(request):
    return text_model(config(HYBRID), TorchBackend() if request.param == "torch" else MLXBackend("cpu"))


@pytest.fixture(scope="module")
def other():
    return text_model(config(HYBRID), TorchBackend("cpu", "bfloat16"))


def prompt(ids):
    return Prompt(np.array(ids, np.int32))


def test_a_model_that_was_never_used_works_on_any_thread():
    """MLX ties unfinished arrays to their thread: a load may leave none behind."""
    for backend in (TorchBackend(), MLXBackend("cpu")):
        fresh = text_model(config(HYBRID), backend)
        with ThreadPoolExecutor(1) as thread:
            logits = thread.submit(lambda: started(fresh)[1].numpy()).result()  # noqa: B023 - it is waited for
        np.testing.assert_array_equal(logits, started(fresh)[1].numpy())


def started(model, ids=LONG, **options):
    session = model.session(seed=1, **options)
    return session, model.prefill(session, prompt(ids))


def near(one, two, rel=2e-3):
    np.testing.assert_allclose(one.numpy(), two.numpy(), atol=rel * np.abs(two.numpy()).max())


@pytest.mark.parametrize("kv_dtype", [None, "int8"])
def test_back_as_far_as_the_rings_allow(model, kv_dtype):
    session, _ = started(model, kv_dtype=kv_dtype)
    with pytest.raises(InvalidInputError, match=r"back to position 228 at most, not to 227.*(.|\n)*Fork"):
        session.trim(227)  # a convolution sees 3 inputs and keeps 64: 290 - 64 + 2
    fork = session.fork()
    session.trim(228)
    step = model.prefill(session, prompt([7, 8]))
    near(step, started(model, [*LONG[:228], 7, 8], kv_dtype=kv_dtype)[1], 2e-3 if kv_dtype is None else 0.05)
    with pytest.raises(InvalidInputError, match="position 228"):
        session.trim(200)  # written over before, whatever was trimmed since
    assert fork.position == 290 and fork.prompt_ids == LONG  # saw nothing of it
    near(model.prefill(fork, prompt([5])), started(model, [*LONG, 5], kv_dtype=kv_dtype)[1], 0.05)
    session.trim(0)
    near(model.prefill(session, prompt([3, 4])), started(model, [3, 4], kv_dtype=kv_dtype)[1])


def test_drafts_written_ahead_count_for_how_far_back(model):
    session, _ = started(model)
    model.say(session, 3)
    model.verify(session, [1] * 20)
    assert session.position == 291
    with pytest.raises(InvalidInputError, match="position 249"):  # 291 + 20 - 64 + 2
        session.trim(240)


def test_verify_gives_the_steps_of_decode(model):
    session, _ = started(model)
    by_hand = session.fork()
    model.say(session, 3)
    checked = model.verify(session, [4, 5, 6])
    for step, token in zip(checked, [3, 4, 5, 6], strict=True):
        expected = model.decode(by_hand, token)
        near(step, expected)
        assert step.index == expected.index and step.hidden.shape == (32,)
    model.say(session, 4)
    near(model.follow(session, checked[1]), checked[1])
    assert session.position == 292 and session.last is checked[1]
    near(model.decode(session, 9), model.decode(started(model, [*LONG, 3, 4])[0], 9))
    with pytest.raises(InvalidInputError, match="Nothing was said"):
        model.advance(session)


@pytest.mark.parametrize("kv_dtype", [None, "int8"])
def test_saved_sessions_go_on_elsewhere(model, other, kv_dtype, tmp_path):
    from safetensors import safe_open

    session, _ = started(model, kv_dtype=kv_dtype)
    model.decode(session, 11)
    session.save(tmp_path / "s")
    expected = model.decode(session, 12)
    same, elsewhere = model.session(kv_dtype=kv_dtype), other.session(kv_dtype=kv_dtype)
    same.load(tmp_path / "s")
    elsewhere.load(tmp_path / "s")
    near(model.decode(same, 12), expected)
    near(other.decode(elsewhere, 12), expected, 0.12)
    assert same.reach == session.reach and same.state["conv"][2].shape == (1, 64, 32)
    with pytest.raises(InvalidInputError, match="position 230"):
        same.trim(100)
    with safe_open(tmp_path / "s", framework="numpy") as file:
        kinds = {str(file.get_tensor(name).dtype) for name in file.keys() if ".k." in name}  # noqa: SIM118
    assert kinds == ({"int8"} if kv_dtype else {"float32"})
    assert kv_dtype is None or session.nbytes < 0.7 * started(model)[0].nbytes


def test_saved_sessions_of_another_kind_are_refused(model, tmp_path):
    session, _ = started(model, kv_dtype="int8")
    session.save(tmp_path / "int8")
    started(model)[0].save(tmp_path / "plain")
    for name, options in (("int8", {}), ("plain", {"kv_dtype": "int8"})):
        mine = model.session(**options)
        with pytest.raises(CheckpointError, match=r"kv_dtype=(.|\n)*Load it into model.session\(kv_dtype="):
            mine.load(tmp_path / name)
        assert mine.position == 0 and mine.state["length"] == 0
    layers = text_model(config((FULL, SLIDING, FULL)))
    with pytest.raises(CheckpointError, match="another model"):
        layers.session().load(tmp_path / "plain")
    named = text_model(config(HYBRID))
    named.variant = dataclasses.replace(VARIANT, id="Another-1B")
    with pytest.raises(CheckpointError, match=f"{VARIANT.id}, not Another-1B"):
        named.session().load(tmp_path / "plain")


def test_an_unknown_kv_dtype_is_refused(model):
    with pytest.raises(InvalidInputError, match="'int4'"):
        model.session(kv_dtype="int4")


class _Third(CancelToken):
    checks = 0

    def check(self):
        self.checks += 1
        if self.checks > 2:
            raise Cancelled("enough")


def test_a_cancelled_prefill_gives_back_what_rings_wrote_over(model, monkeypatch):
    monkeypatch.setattr("izwi_lab.families.shared.text_model.PREFILL_CHUNK", 100)
    session, _ = started(model)
    reach = session.reach
    with pytest.raises(Cancelled):
        model.prefill(session, prompt(LONG), cancel=_Third())
    assert (session.position, session.state["length"], session.reach) == (290, 290, reach)
    near(model.prefill(session, prompt([5])), started(model, [*LONG, 5])[1])


def test_scores_are_those_of_the_steps(model, monkeypatch):
    ids = LONG[:150]
    session = model.session()
    step, expected = model.prefill(session, prompt(ids[:1])), []
    for token in ids[1:]:
        expected.append(step.logprob(token))
        step = model.decode(session, token)
    for size in (1 << 24, 97 * 40, 97 * 149, 1):
        monkeypatch.setattr("izwi_lab.families.shared.scoring.SCORED_LOGITS", size)
        scores = model.score(prompt(ids if size > 1 else ids[:9]))
        assert scores.dtype == np.float32
        np.testing.assert_allclose(scores, expected if size > 1 else expected[:8], atol=2e-3)
    for bad, match in (([3], "two"), ([], "empty"), ([3, 97], "vocabulary"), ([1] * 601, "601 tokens")):
        with pytest.raises(InvalidInputError, match=match):
            model.score(prompt(bad))
    cancel = CancelToken()
    cancel.cancel()
    with pytest.raises(Cancelled):
        model.score(prompt(ids), cancel=cancel)


def test_penalties_see_what_the_session_holds(model, tmp_path):
    """The counts that grow with a session are those that a fresh count gives, whatever was done to it."""
    session, step = started(model, LONG[:60])

    def draw(one, step):
        fresh = np.random.Generator(np.random.Philox(0))
        fresh.bit_generator.state = one.rng.bit_generator.state
        expected = sample_token(step.logits, PUNISHED, fresh, one.tokens, model.backend, prompt=one.prompt_ids)
        assert model.sample(one, step, PUNISHED) == expected
        return expected

    for _ in range(6):
        step = model.decode(session, draw(session, step))
    fork = session.fork()
    for one in (fork, session):
        here = step
        for _ in range(3):
            here = model.decode(one, draw(one, here))
    session.trim(session.position - 4)
    draw(session, model.decode(session, 5))
    fork.save(tmp_path / "s")
    loaded = model.session()
    loaded.load(tmp_path / "s")
    draw(loaded, here)
    draw(fork, model.prefill(fork, prompt([1, 2, 3])))


def test_a_fork_may_draw_by_a_seed_of_its_own(model, tmp_path):
    session = started(model, LONG[:30])[0]
    twins = [session.fork(seed=7), session.fork(seed=7), session.fork(), session]
    drawn = [[one.rng.random() for _ in range(5)] for one in twins]
    assert drawn[0] == drawn[1] != drawn[2] == drawn[3]
    assert twins[0].seed == 7 and twins[2].seed == session.seed == 1
    twins[0].save(tmp_path / "s")
    loaded = model.session()
    loaded.load(tmp_path / "s")
    assert loaded.seed == 7 and loaded.rng.random() == twins[0].rng.random()
    for wrong in (-1, 1.5, True, "7"):
        with pytest.raises(InvalidInputError, match="seed must be"):
            session.fork(seed=wrong)


def test_only_allowed_tokens_are_chosen(model):
    session, step = started(model, [1, 2, 3])
    allowed = np.zeros(4, np.int32)
    allowed[2] = 1 << 5
    assert model.sample(session, step, allowed=allowed) == 69
    assert model.sample(session, step, Sampling(temperature=2.0), allowed=allowed) == 69
    with pytest.raises(InvalidInputError, match="No token"):
        model.sample(session, step, allowed=np.zeros(4, np.int32))
