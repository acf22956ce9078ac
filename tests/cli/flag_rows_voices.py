"""Rows of the flag table: voices, and the flags of speak that say whose voice and how."""

import json
from pathlib import Path

import numpy as np
from flag_rows_audio import SAY
from flag_table import asked, flag

from izwi_lab import catalog
from izwi_lab.catalog import Task
from izwi_lab.families.qwen3_tts.voice import Voice
from izwi_lab.families.shared.sampling import Sampling

CLONE = ("voices", "--clone", "anna.wav")
ANNA = Voice("anna", np.ones(4, np.float32), np.zeros((16, 25), np.int32), "Good day.", "english", "some-model")


def kept(folder):
    Path(folder).mkdir(exist_ok=True)
    return ANNA.save(Path(folder) / "anna.safetensors")


# --- speak ---------------------------------------------------------------------------------------------------------


@flag("speak", "--reference", *SAY, "--reference", "anna.wav")
def _(result, world):
    assert asked(world)["reference"] == Path("anna.wav") and asked(world)["voice"] is None


@flag("speak", "--transcript", *SAY, "--reference", "anna.wav", "--transcript", "Good day.")
def _(result, world):
    assert asked(world)["transcript"] == "Good day."


@flag("speak", "--instruct", *SAY, "--instruct", "Whisper.")
def _(result, world):
    assert asked(world)["instruct"] == "Whisper."


@flag("speak", "--text-mode", *SAY, "--text-mode", "streaming")
def _(result, world):
    assert asked(world)["text_mode"] == "streaming"


@flag("speak", "--temperature", *SAY, "--temperature", "0.7")
def _(result, world):
    assert asked(world)["sampling"] == Sampling(temperature=0.7, top_k=50, repetition_penalty=1.05)


@flag("speak", "--top-p", *SAY, "--top-p", "0.9")
def _(result, world):
    assert asked(world)["sampling"] == Sampling(temperature=0.9, top_k=50, top_p=0.9, repetition_penalty=1.05)


@flag("speak", "--top-k", *SAY, "--top-k", "20")
def _(result, world):
    assert asked(world)["sampling"] == Sampling(temperature=0.9, top_k=20, repetition_penalty=1.05)


@flag("speak", "--max-frames", *SAY, "--max-frames", "25")
def _(result, world):
    assert asked(world)["max_frames"] == 25 and asked(world)["sampling"] is None


# --- voices --------------------------------------------------------------------------------------------------------


@flag("voices", "--model", "voices", "--model", "Kokoro-82M")
def _(result, world):
    assert result.out.startswith("Kokoro-82M: ") and "af_heart" in result.out
    assert len(result.out.splitlines()) == 1 and world.engines == []


@flag("voices", "--json", "voices", "--json")
def _(result, world):
    rows = json.loads(result.out)
    assert [row["model"] for row in rows] == [v.id for v in catalog.variants(Task.TTS)]
    assert all(row["voices"] or row["notes"] for row in rows)


@flag("voices", "--clone", *CLONE)
def _(result, world):
    told = {"model": "Qwen3-TTS-12Hz-0.6B-Base", "transcript": None, "name": "anna", "language": ""}
    assert world.call == ("voice", Path("anna.wav"), told)
    assert result.out == "anna.safetensors\n" and Voice.load("anna.safetensors").codes is None


@flag("voices", "--transcript", *CLONE, "--transcript", "Good day.")
def _(result, world):
    assert Voice.load("anna.safetensors").transcript == "Good day." and "Good day." in result.err


@flag("voices", "--name", *CLONE, "--name", "Anna B")
def _(result, world):
    assert result.out == "Anna B.safetensors\n" and Voice.load("Anna B.safetensors").name == "Anna B"


@flag("voices", "--language", *CLONE, "--language", "english")
def _(result, world):
    assert Voice.load("anna.safetensors").language == "english"


@flag("voices", "--output", *CLONE, "--output", "here.safetensors")
def _(result, world):
    assert result.out == "here.safetensors\n" and Voice.load("here.safetensors").name == "anna"


@flag("voices", "--backend", *CLONE, "--backend", "mlx")
def _(result, world):
    assert world.engines[0].options["backend"] == "mlx"


@flag("voices", "--device", *CLONE, "--device", "cpu")
def _(result, world):
    assert world.engines[0].options["device"] == "cpu"
