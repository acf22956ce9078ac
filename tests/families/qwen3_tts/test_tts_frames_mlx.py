"""Frames made in one go on MLX, as on a GPU: the codes of the plain path, with one wait."""

from __future__ import annotations

import numpy as np
import pytest
from tts_models import checkpoint, ours

from izwi_lab.errors import InvalidInputError
from izwi_lab.families.shared.sampling import Sampling

GREEDY = {"sampling": Sampling(), "predictor": Sampling()}
NARROW = {"sampling": Sampling(temperature=1.0), "predictor": Sampling(temperature=1.3, top_p=0.9, min_p=0.02)}
SPEECH = {"greedy": GREEDY, "seeded": {"sampling": None, "predictor": None}, "seeded-narrow": NARROW}


@pytest.fixture(scope="module", params=[True, False], ids=["projected", "wide"])
def models(request, tmp_path_factory):
    """Two models of the same weights: frames in one go, and code by code."""
    folder = checkpoint(tmp_path_factory.mktemp("c") / "c", projected=request.param)
    whole, plain = ours(folder, "mlx"), ours(folder, "mlx")
    assert not plain.net.whole  # on the CPU nothing is waited for
    whole.net.whole = True
    return whole, plain


def spoken(model, frames, *, sampling, predictor, **options):
    session = model.session(seed=5, **options)
    step = model.prefill(session, model.tokenize("Hello."))
    for _ in range(frames):
        step = model.decode(session, model.sample(session, step, sampling), sampling=predictor)
    return session, step


@pytest.mark.parametrize("kind", SPEECH)
def test_codes_and_logits_equal_those_of_the_plain_path(models, kind):
    (one, step), (other, plain) = (spoken(model, 6, **SPEECH[kind]) for model in models)
    assert one.codes.shape == (16, 6) and len(np.unique(one.codes)) > 20
    np.testing.assert_array_equal(one.codes, other.codes)
    np.testing.assert_allclose(step.numpy(), plain.numpy(), atol=1e-4)
    assert (step.index, one.position) == (plain.index, other.position)
    assert one.rng.random() == other.rng.random()  # as many numbers were drawn


def test_the_last_frame_is_not_read(models):
    (one, step), (other, _) = (spoken(model, 3, **GREEDY, max_frames=3) for model in models)
    assert one.done and one.finish_reason == "length" and one.position == other.position
    np.testing.assert_array_equal(step.codes, other.codes[:, -1])


def test_open_taps_see_every_code(models):
    whole, _ = models
    with whole.tap("predictor.logits") as taps:
        spoken(whole, 1, **GREEDY)
    assert len(taps.history["predictor.logits"]) == 15


def test_logits_that_are_no_numbers_leave_the_session_where_it_was(models):
    whole, _ = models
    session, step = spoken(whole, 2, **GREEDY)
    session.state["hidden"] = session.state["hidden"] * float("nan")
    with pytest.raises(InvalidInputError, match="NaN"):
        whole.decode(session, whole.sample(session, step, Sampling()), sampling=Sampling())
    assert session.codes.shape[1] == 2 and session.state["talker"]["length"] == session.position
