"""Qwen3-TTS loaded on one thread and used on others."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from tts_models import checkpoint, clip, ours


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return checkpoint(tmp_path_factory.mktemp("threads") / "base", "base")


@pytest.mark.parametrize("backend", ["torch", "mlx"])
def test_a_model_that_was_never_used_works_on_any_thread(folder, backend):
    codes = np.arange(48).reshape(16, 3) % 64
    told = {"seed": 3, "max_frames": 5}

    def voice():
        return ours_here.voice(clip(), "hello")

    ours_here = ours(folder, backend)
    with ThreadPoolExecutor(1) as thread:  # each verb first, of a model that only this thread has loaded
        made = thread.submit(voice).result()
        spoken = thread.submit(lambda: ours_here.generate("hi", voice=made, **told)).result()
    for first in ("decode", "speak"):
        fresh = ours(folder, backend)
        with ThreadPoolExecutor(1) as thread:
            if first == "decode":
                heard = thread.submit(lambda: fresh.codec.decode(codes)).result()  # noqa: B023 - it is waited for
                np.testing.assert_array_equal(heard.samples, fresh.codec.decode(codes).samples)
            else:
                again = thread.submit(lambda: fresh.generate("hi", voice=made, **told)).result()  # noqa: B023
                np.testing.assert_array_equal(again.audio.samples, spoken.audio.samples)


@pytest.mark.parametrize("backend", ["torch", "mlx"])
def test_threads_that_share_a_model_speak_as_each_alone(folder, backend):
    model = ours(folder, backend)
    voice = model.voice(clip())

    def say(seed):
        return model.generate("hi there", voice=voice, seed=seed, max_frames=6).audio.samples

    with ThreadPoolExecutor(3) as threads:
        together = list(threads.map(say, range(3)))
    for seed, samples in enumerate(together):
        np.testing.assert_array_equal(samples, say(seed))
