"""Whisper's sessions and options where they once went wrong: word times, warm draws, penalties, closed models."""

from __future__ import annotations

import numpy as np
import pytest

from izwi_lab import backends, catalog
from izwi_lab.audio import Audio
from izwi_lab.backends.base import BackendPlan
from izwi_lab.errors import CheckpointError, InvalidInputError
from izwi_lab.families.shared import sampling as shared_sampling
from izwi_lab.families.shared.sampling import Sampling
from izwi_lab.families.whisper import model as whisper


def load(folder, backend="torch", dtype="float32"):
    plan = BackendPlan(backend, "cpu", dtype, "test")
    return whisper.load(catalog.get("Whisper-base"), folder, plan, backends.open_backend(plan), layout="hf")


def started(model, mel, count=4):
    session = model.session(model.encode(mel), seed=1)
    step = model.prefill(session, model.tokenize(language="en"))
    for _ in range(count):
        step = model.decode(session, model.sample(session, step))
    return session, step


@pytest.mark.parametrize("name", ["torch", "plain", "mlx"])
def test_word_times_leave_the_session_as_it_was(models, mel, name):
    model = models[name]
    session, _ = started(model, mel)
    expected = model.decode(session.fork(), 300).numpy()
    words = model.word_times(session, [11, 300, 4_000, 17, 23, 99, 301], language="en", heard_s=1.0)
    assert words
    np.testing.assert_allclose(model.decode(session, 300).numpy(), expected, atol=1e-5)


def test_greedy_sampling_obeys_bias_and_penalties(models, mel):
    model = models["torch"]
    session, step = started(model, mel, 1)  # a time token was said: text comes next
    best = model.sample(session.fork(), step)
    assert model.sample(session.fork(), step, Sampling(logit_bias={best: -np.inf})) != best
    assert model.sample(session.fork(), step, Sampling(logit_bias={4_321: 1e4})) == 4_321


@pytest.mark.parametrize("name", ["torch", "mlx"])
def test_draws_see_the_logits_unrounded(folders, mel, name, monkeypatch):
    model = load(folders["hf"], name, "bfloat16")
    session, step = started(model, mel, 1)
    exact, _ = model._rules[True].apply(step.numpy(), session.tokens)
    seen = []
    real = shared_sampling.Chooser.token
    monkeypatch.setattr(shared_sampling.Chooser, "token", lambda *given: seen.append(given[1]) or real(*given))
    model.sample(session, step, Sampling(temperature=0.7))
    np.testing.assert_array_equal(model.backend.numpy(seen[0]), exact)


def test_options_that_cannot_be_honoured_are_refused(models, mel):
    model = models["torch"]
    with pytest.raises(InvalidInputError, match="max_tokens"):
        model.session(model.encode(mel), max_tokens=0)
    with pytest.raises(InvalidInputError, match="needs a language"):
        model.tokenize(task="translate")
    with pytest.raises(InvalidInputError, match="seed"):
        model.stream(Audio.silence(1.0, 16_000), seed=-1)


def test_a_session_is_saved_and_goes_on(models, mel, tmp_path):
    model = models["torch"]
    session, _ = started(model, mel)
    session.save(tmp_path / "s")
    expected = model.decode(session, 300).numpy()
    for name in ("torch", "mlx"):
        loaded = models[name].session(models[name].encode(mel))
        loaded.load(tmp_path / "s")
        np.testing.assert_allclose(models[name].decode(loaded, 300).numpy(), expected, atol=2e-4)


def test_a_session_of_another_shape_is_refused(models, mel, tmp_path):
    model = models["torch"]
    session, _ = started(model, mel)
    session.state["net"]["cross_k"] = session.state["net"]["cross_k"][:, :2]
    session.save(tmp_path / "s")
    fresh = model.session(model.encode(mel))
    with pytest.raises(CheckpointError, match="another model"):
        fresh.load(tmp_path / "s")
    assert fresh.position == 0


def test_a_closed_model_says_so(folders, mel):
    model = load(folders["hf"])
    states = model.encode(mel)
    model.close()
    assert model.nbytes == 0
    with pytest.raises(InvalidInputError, match="closed"):
        model.encode(mel)
    with pytest.raises(InvalidInputError, match="closed"):
        model.session(states)
