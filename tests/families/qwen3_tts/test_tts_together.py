"""Sessions of Qwen3-TTS stepped together say what each says alone: voices, seeds, samplings, caches in blocks."""

from __future__ import annotations

import numpy as np
import pytest
from tts_models import by_hand, checkpoint, clip, ours
from tts_together import TOLD, Pool, Told, entered, next_reading, say, together

from izwi_lab.errors import InvalidInputError
from izwi_lab.families.protocols import BatchModel
from izwi_lab.families.qwen3_tts.graph_torch import Frames
from izwi_lab.families.shared.sampling import Sampling
from izwi_lab.families.shared.steps import Reading

# The last two choose codes as on a GPU: all at once, where the logits are.
KINDS = ("compiled", "torch", "mlx", "torch whole", "mlx whole")
pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return checkpoint(tmp_path_factory.mktemp("together") / "c")


def opened(folder, kind):
    model = ours(folder, "mlx" if kind.startswith("mlx") else "torch")
    if kind == "compiled":
        assert model.net.compiled.ready()
    else:
        model.net.compiled = None
    if kind.endswith("whole"):
        model.net.whole = (
            True if kind.startswith("mlx") else Frames(model.net, model.net.talker.model._frequencies, None)
        )
    return model


@pytest.fixture(scope="module", params=KINDS)
def model(request, folder):
    return opened(folder, request.param)


@pytest.fixture(scope="module")
def alone(model):
    """What each says alone."""
    return [
        by_hand(model, t.prompt(model), frames=t.frames, seed=t.seed, sampling=t.sampling, predictor=t.predictor)
        for t in TOLD
    ]


def same(one, other):
    np.testing.assert_array_equal(one.codes, other.codes)
    assert (one.tokens, one.finish_reason, one.position) == (other.tokens, other.finish_reason, other.position)
    assert one.rng.random() == other.fork().rng.random()  # as many numbers were drawn, in the same order


@pytest.mark.parametrize("paged", [False, True], ids=["own", "paged"])
def test_each_says_what_it_says_alone(model, alone, paged):
    assert {s.codes.shape[1] for s in alone} == {t.frames for t in TOLD}
    for one, other in zip(together(model, paged=paged), alone, strict=True):
        same(one, other)
        if not paged:
            np.testing.assert_array_equal(model.audio(one).samples, model.audio(other).samples)


@pytest.mark.parametrize("paged", [False, True], ids=["own", "paged"])
def test_who_lost_its_caches_reads_again_and_goes_on(model, alone, paged):
    lost = []

    def preempt(number, sessions, pool):
        victim = sessions[number % len(sessions)]
        if victim is None or victim.done or number % 2:
            return
        model.stand(victim, 0)
        if pool is not None:
            pool.lend(victim, len(victim.prompt_ids) + victim.max_tokens)
        lost.append(victim.codes.shape[1])

    for one, other in zip(together(model, paged=paged, between=preempt), alone, strict=True):
        same(one, other)
    assert len(lost) > 4 and max(lost) > 3  # some had said something


def test_an_end_of_its_own_is_met_together(tmp_path):
    for kind in ("compiled", "mlx"):
        speaker = opened(checkpoint(tmp_path / kind, projected=False, end=3.0), kind)
        telling = [Told("Hello world.", voice, seed, 40, 50) for seed, voice in enumerate(("ryan", "serena", "eric"))]
        for one, told in zip(together(speaker, telling), telling, strict=True):
            same(one, by_hand(speaker, told.prompt(speaker), frames=40, seed=told.seed))
            assert one.finish_reason == "stop"


def test_the_context_ends_a_session_together(tmp_path):
    """The tiny talker has 1024 positions; the last frame, which is never read, would be at the 1025th."""
    speaker = ours(checkpoint(tmp_path / "c", "voice_design"))
    prompt = speaker.tokenize("x" * 990, instruct="a calm man")
    session, twin = speaker.session(seed=1), by_hand(speaker, prompt, frames=500, seed=1)
    speaker.enter(session, prompt)
    told = Told("", "", 1, 500, 512)
    while not session.done:
        (step,) = speaker.step_many([next_reading(speaker, told, session)])
        if step is not None:
            say(speaker, told, session, step)
    same(session, twin)
    assert session.position == 1024 and step.codes.tolist() == session.codes[:, -1].tolist()


def test_a_cloned_voice_is_entered_with_its_reference(tmp_path):
    speaker = ours(checkpoint(tmp_path / "c", "base"))
    voice = speaker.voice(clip(), "These are its words.")
    for mode in ("whole", "streaming"):
        prompt = speaker.tokenize("hello", voice=voice, text_mode=mode)
        session, told = speaker.session(seed=2, max_frames=4), Told("", "", 2, 4, 11)
        speaker.enter(session, prompt)
        while not session.done:
            (step,) = speaker.step_many([next_reading(speaker, told, session)])
            if step is not None:
                say(speaker, told, session, step)
        other = by_hand(speaker, prompt, frames=4, seed=2)
        same(session, other)
        np.testing.assert_array_equal(speaker.audio(session).samples, speaker.audio(other).samples)


def begun(model, frames=3):
    """Sessions that have said some frames, each with a code whose frame is due."""
    sessions = [entered(model, told) for told in TOLD]
    while any(s.codes.shape[1] < frames for s in sessions):
        going = [i for i, s in enumerate(sessions) if s.codes.shape[1] < frames]
        found = model.step_many([next_reading(model, TOLD[i], sessions[i]) for i in going])
        for i, step in zip(going, found, strict=True):
            if step is not None:
                say(model, TOLD[i], sessions[i], step)
    return sessions


def step_on(model, sessions, telling=TOLD):
    by_telling = sessions if isinstance(sessions, dict) else dict(zip(telling, sessions, strict=True))
    return model.step_many([next_reading(model, told, by_telling[told]) for told in telling])


def test_bad_numbers_of_one_are_its_own(model, alone):
    sessions = begun(model)
    bad = sessions[2]
    bad.state["hidden"] = bad.state["hidden"] * float("nan")
    found = step_on(model, sessions)
    assert isinstance(found[2], InvalidInputError) and "NaN" in str(found[2])
    assert bad.codes.shape[1] == 3 and model.caches(bad)["length"] == bad.position == len(bad.prompt_ids) + 3
    for i, (session, other) in enumerate(zip(sessions, alone, strict=True)):
        if i != 2:
            assert found[i].codes.tolist() == other.codes[:, 3].tolist() == session.codes[:, 3].tolist()
            assert session.position == len(session.prompt_ids) + 4


def test_bad_numbers_in_the_blocks_of_one_are_never_anothers(model, alone):
    """Neither while it runs beside them, nor when its blocks are lent again."""
    pool = Pool(model, blocks=20)
    sessions = {told: entered(model, told, pool) for told in TOLD[:3]}
    lost = sessions[TOLD[0]]

    def step():
        going = [told for told, session in sessions.items() if not session.done]
        for told, found in zip(going, step_on(model, sessions, going), strict=True):
            if sessions[told] is lost and "bad" in lost.state:
                assert np.isnan(found.numpy()).all()
            elif found is not None:
                say(model, told, sessions[told], found)

    while lost.codes.shape[1] < 2:
        step()
    lost.state |= {"trailing": lost.state["trailing"] * float("nan"), "bad": True}
    step()
    del sessions[TOLD[0]]
    pool.take_back(lost)
    sessions |= {told: entered(model, told, pool) for told in TOLD[3:]}
    lent = [set(model.caches(s)["blocks"].tolist()) for s in (sessions[TOLD[3]], lost)]
    assert lent[0] & lent[1]
    while not all(session.done for session in sessions.values()):
        step()
    for told, other in zip(TOLD[1:], alone[1:], strict=True):
        same(sessions[told], other)


def test_a_step_that_fails_moves_nobody_and_is_taken_again(model, alone, monkeypatch):
    sessions, real = begun(model), model.net.talk_together

    def fail(pieces):
        real(pieces)
        raise RuntimeError("out of memory")

    before = [(s.codes.shape[1], s.position, model.caches(s)["length"], s.tokens[:]) for s in sessions]
    monkeypatch.setitem(vars(model.net), "talk_together", fail)
    with pytest.raises(RuntimeError, match="out of memory"):
        step_on(model, sessions)
    monkeypatch.undo()
    assert before == [(s.codes.shape[1], s.position, model.caches(s)["length"], s.tokens) for s in sessions]
    for step, other in zip(step_on(model, sessions), alone, strict=True):
        assert step.codes.tolist() == other.codes[:, 3].tolist()


def test_a_frame_gives_the_same_bits_beside_others(folder):
    model = opened(folder, "compiled")
    mine, theirs = ([model.session(seed=t.seed) for t in TOLD] for _ in range(2))
    for told, *pair in zip(TOLD, mine, theirs, strict=True):
        for session in pair:
            step = model.prefill(session, told.prompt(model))
            say(model, told, session, step)
    late = entered(model, TOLD[0])
    for _ in range(3):
        alone = [model.advance(s, sampling=t.predictor) for s, t in zip(theirs, TOLD, strict=True)]
        beside = model.step_many(
            [*(next_reading(model, t, s) for s, t in zip(mine, TOLD, strict=True)), next_reading(model, TOLD[0], late)]
        )
        for told, one, other, a, b in zip(TOLD, beside, alone, mine, theirs, strict=False):
            np.testing.assert_array_equal(one.numpy(), other.numpy())
            np.testing.assert_array_equal(one.codes, other.codes)
            say(model, told, a, one)
            say(model, told, b, other)


def test_a_session_between_saying_and_reading(model):
    prompt = TOLD[0].prompt(model)
    session = model.session(seed=1, max_frames=3)
    with pytest.raises(InvalidInputError, match="empty"):
        model.say(session, 3)
    with pytest.raises(InvalidInputError, match="empty"):
        model.advance(session)
    step = model.prefill(session, prompt)
    with pytest.raises(InvalidInputError, match="Nothing was said"):
        model.advance(session)
    model.say(session, model.sample(session, step))
    for wrong in (lambda: model.say(session, 3), lambda: model.decode(session, 3)):
        with pytest.raises(InvalidInputError, match="no frame yet"):
            wrong()
    other = session.fork()
    for one in (session, other):
        while not one.done:
            step = model.advance(one)
            if not one.done:
                model.say(one, model.sample(one, step))
    np.testing.assert_array_equal(session.codes, by_hand(model, prompt, frames=3, seed=1).codes)
    np.testing.assert_array_equal(session.codes, other.codes)
    with pytest.raises(InvalidInputError, match="done"):
        model.advance(session)


def test_what_cannot_be_read_is_ones_own(model):
    told, session = TOLD[0], entered(model, TOLD[0])
    for wrong in (
        Reading(session, 3, 5),
        Reading(session, 0, 0),
        Reading(session, 0, len(session.prompt_ids) + 1),
        Reading(session, 0, 2, sampling=Sampling(presence_penalty=1.0)),
    ):
        good = entered(model, TOLD[1])
        bad, step = model.step_many([wrong, next_reading(model, TOLD[1], good)])
        assert isinstance(bad, InvalidInputError) and step.logits.shape == (model.config.talker.vocab_size,)
    with pytest.raises(InvalidInputError, match="empty"):
        model.say(session, 3)
    assert model.step_many([]) == []
    with pytest.raises(InvalidInputError, match="already"):
        by_now = model.session()
        model.prefill(by_now, told.prompt(model))
        model.enter(by_now, told.prompt(model))


def test_only_what_must_be_read_again_is_kept(model, tmp_path):
    session = begun(model)[0]
    assert "embedded" not in session.state and "layout" in session.state
    model.step_many([next_reading(model, TOLD[0], session)])
    session.save(tmp_path / "kept")
    loaded = model.session(max_frames=TOLD[0].frames)
    loaded.load(tmp_path / "kept")
    assert not {"layout", "embedded"} & set(loaded.state)
    codes = []
    for one in (session, loaded):
        step = model.last(one)
        while not one.done:
            step = model.decode(one, model.sample(one, step))
        codes.append(one.codes)
    np.testing.assert_array_equal(*codes)


def test_blocks_are_as_large_as_they_say(model):
    pool = model.pool(3, 16)
    held = sum(a.nbytes for name in ("k", "v") for a in pool[name])
    assert model.pageable and held == 3 * 16 * model.position_bytes
    assert model.max_positions == 1024 and isinstance(model, BatchModel)
