"""Voice: kept in a file, listed and used again; damaged and hostile files are refused."""

from __future__ import annotations

import dataclasses
import json
import os
import pickle
import struct

import numpy as np
import pytest
from safetensors.numpy import save

import izwi_lab
from izwi_lab.errors import ArtifactError, CheckpointError, InvalidInputError
from izwi_lab.families.qwen3_tts.voice import Voice, kept

META = {"kind": "izwi-voice-1", "name": "anna", "transcript": "Hi.", "language": "english", "source": "A model"}


def voice(**changes) -> Voice:
    rng = np.random.default_rng(0)
    given = {
        "name": "anna",
        "embedding": rng.standard_normal(48).astype(np.float32),
        "codes": rng.integers(0, 2048, (16, 25)).astype(np.int32),
        "transcript": "Guten Tag, 你好.",
        "language": "german",
        "source": "Qwen3-TTS-12Hz-0.6B-Base",
    }
    return Voice(**(given | changes))


def arrays(**changes) -> dict[str, np.ndarray]:
    made = {"embedding": np.ones(4, np.float32), "codes": np.ones((2, 3), np.int32)} | changes
    return {name: array for name, array in made.items() if array is not None}


def test_it_is_the_public_voice_and_describes_itself():
    assert izwi_lab.Voice is Voice
    shown = repr(voice())
    assert shown == (
        "Voice('anna', vector of 48, 2.0 s saying 'Guten Tag, 你好.', german, by Qwen3-TTS-12Hz-0.6B-Base)"
    )
    assert len(repr(voice(transcript="word " * 500))) < 200
    assert repr(Voice("b", np.ones(3, np.float32))) == "Voice('b', vector of 3, no reference)"


@pytest.mark.parametrize("kept", [voice(), voice(codes=None, transcript=""), voice(language="", source="", name="ä b")])
def test_saved_and_loaded_it_is_equal(tmp_path, kept):
    path = kept.save(tmp_path / "deep" / "anna.safetensors")
    again = Voice.load(str(path))
    assert again == kept and hash(again) == hash(kept) and again is not kept
    assert again.embedding.dtype == np.float32 and (again.codes is None or again.codes.dtype == np.int32)
    assert [p.name for p in path.parent.iterdir()] == ["anna.safetensors"], "written whole, with nothing beside it"


def test_voices_differ_in_every_field():
    changed = {
        "name": "bob", "embedding": np.zeros(48, np.float32), "codes": np.zeros((16, 25), np.int32),
        "transcript": "Bye.", "language": "", "source": "",
    }  # fmt: skip
    assert set(changed) | {"notes"} == {f.name for f in dataclasses.fields(Voice)}
    for name, value in changed.items():
        assert voice() != voice(**{name: value}), name
    assert voice() != voice().vector_only() and voice() != "anna"


def test_notes_are_shown_but_neither_compared_nor_kept(tmp_path):
    noted = voice(notes=("only the first 30 s of 40.0 s are used",))
    assert noted == voice() and hash(noted) == hash(voice())
    assert repr(noted).endswith("Base, only the first 30 s of 40.0 s are used)")
    assert noted.vector_only().notes == noted.notes
    assert Voice.load(noted.save(tmp_path / "anna.safetensors")).notes == ()


def test_by_its_vector_alone():
    alone = voice().vector_only()
    assert alone.codes is None and alone.transcript == "" and alone.reference_s == 0.0
    assert np.array_equal(alone.embedding, voice().embedding) and alone.name == "anna"


def test_the_voices_of_a_folder(tmp_path):
    for name in ("Zoe", "anna", "Bob"):
        voice(name=name).save(tmp_path / f"{name}.safetensors")
    (tmp_path / "notes.txt").write_text("no voice")
    (tmp_path / "session.safetensors").write_bytes(save({"x": np.zeros(1)}, metadata={"kind": "izwi-session-2"}))
    assert [v.name for v in Voice.saved(tmp_path)] == ["anna", "Bob", "Zoe"]
    (tmp_path / "empty").mkdir()
    assert Voice.saved(tmp_path / "empty") == ()
    for missing in (tmp_path / "none", "a\0b", "x" * 5000, None):
        with pytest.raises(CheckpointError, match="no folder"):
            Voice.saved(missing)


def test_damaged_files_of_a_folder_are_passed_over_and_named(tmp_path, caplog):
    voice().save(tmp_path / "anna.safetensors")
    (tmp_path / "half.safetensors").write_bytes(b"\x10")
    (tmp_path / "odd.safetensors").write_bytes(save(arrays(embedding=None), metadata=META))
    os.mkfifo(tmp_path / "pipe.safetensors")
    voices, damaged = kept(tmp_path)
    assert [v.name for v in voices] == ["anna"]
    assert len(damaged) == 2 and "half" in str(damaged[0]) and "odd" in str(damaged[1])
    assert Voice.saved(tmp_path) == voices
    assert "half.safetensors" in caplog.text and "odd.safetensors" in caplog.text


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"name": ""}, "name is empty"),
        ({"name": 5}, "name must be text"),
        ({"name": "x" * 201}, "at most 200"),
        ({"name": "a\ud800"}, "name holds .* at character 1"),
        ({"name": "a\0b"}, "name holds"),
        ({"transcript": "Hi.\udcff"}, "transcript holds"),
        ({"language": "\0"}, "language holds"),
        ({"source": "\ud800"}, "source holds"),
        ({"notes": "one"}, "notes must be"),
        ({"embedding": [[1.0], [1.0, 2.0]]}, "no array"),
        ({"codes": [[1], [1, 2]]}, "no array"),
        ({"transcript": None}, "transcript must be text"),
        ({"transcript": ""}, "codes but not a transcript"),
        ({"codes": None}, "a transcript but not codes"),
        ({"embedding": np.ones((2, 3), np.float32)}, "floats"),
        ({"embedding": np.ones(3, np.int32)}, "floats"),
        ({"embedding": np.ones(0, np.float32)}, "floats"),
        ({"embedding": np.array([1.0, np.nan])}, "NaN or infinity"),
        ({"embedding": np.array([1.0, np.inf])}, "NaN or infinity"),
        ({"embedding": np.array([1.0, 1e300])}, "NaN or infinity"),
        ({"codes": np.ones(3, np.int32)}, "whole numbers"),
        ({"codes": np.ones((2, 3), np.float32)}, "whole numbers"),
        ({"codes": np.ones((2, 0), np.int32)}, "whole numbers"),
        ({"codes": np.full((2, 3), -1)}, "go from -1"),
        ({"codes": np.full((2, 3), 2**40)}, "which no codebook has"),
        ({"codes": np.ones((2, 5000), np.int32)}, "at most"),
    ],
)
def test_what_is_no_voice_is_refused(changes, message):
    with pytest.raises(InvalidInputError, match=message):
        voice(**changes)


@pytest.mark.parametrize(
    ("held", "metadata", "message"),
    [
        (arrays(), None, "no saved voice"),
        (arrays(), META | {"kind": "izwi-session-2"}, "no saved voice"),
        (arrays(embedding=None), META, "a voice holds"),
        (arrays(more=np.ones(2, np.float32)), META, "a voice holds"),
        (arrays(embedding=np.ones(4, np.float64)), META, "a voice holds"),
        (arrays(codes=np.ones((2, 3), np.int64)), META, "a voice holds"),
        (arrays(codes=np.ones((2, 3, 1), np.int32)), META, "a voice holds"),
        (arrays(embedding=np.full(4, np.nan, np.float32)), META, "damaged.*NaN"),
        (arrays(codes=None), META, "damaged.*not codes"),
        (arrays(codes=np.full((2, 3), -5, np.int32)), META, "damaged.*no codebook"),
        (arrays(), {k: v for k, v in META.items() if k != "name"}, "damaged.*name is empty"),
        (arrays(), META | {"name": "x" * 5000}, "damaged.*at most"),
    ],
)
def test_a_file_that_is_no_voice_is_refused(tmp_path, held, metadata, message):
    path = tmp_path / "voice.safetensors"
    path.write_bytes(save(held, metadata=metadata))
    with pytest.raises(CheckpointError, match=f"(?s){message}"):
        Voice.load(path)


def with_header(header: dict, body: bytes = bytes(64)) -> bytes:
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + body


ENTRY = {"dtype": "F32", "shape": [4], "data_offsets": [0, 16]}


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\x00" * 7,
        struct.pack("<Q", 2**62) + b"{}",
        pickle.dumps({"embedding": [1.0]}),
        with_header({"__metadata__": META, "embedding": ENTRY | {"data_offsets": [0, 2**40], "shape": [2**38]}}),
        with_header({"__metadata__": META, "embedding": ENTRY | {"data_offsets": [-16, 0]}}),
        with_header({"__metadata__": META, "embedding": ENTRY | {"shape": [-4]}}),
        with_header({"__metadata__": {"kind": 5}, "embedding": ENTRY}),
    ],
    ids=["empty", "short", "endless header", "pickle", "past the end", "before the start", "negative", "odd metadata"],
)
def test_a_hostile_file_is_refused(tmp_path, content):
    path = tmp_path / "voice.safetensors"
    path.write_bytes(content)
    with pytest.raises(CheckpointError):
        Voice.load(path)


def test_a_cut_file_and_a_huge_one_are_refused(tmp_path):
    path = voice().save(tmp_path / "voice.safetensors")
    whole = path.read_bytes()
    for size in (8, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:size])
        with pytest.raises(CheckpointError):
            Voice.load(path)
    path.write_bytes(whole)
    with path.open("r+b") as file:
        file.truncate(1 << 34)  # sparse: nothing of it is read
    with pytest.raises(CheckpointError, match="no saved voice"):
        Voice.load(path)


@pytest.mark.parametrize("path", [None, 5, "", " "])
def test_what_is_no_path_is_refused(tmp_path, path):
    for call in (voice().save, Voice.load):
        with pytest.raises(InvalidInputError, match="kept in a file"):
            call(path)
        with pytest.raises(InvalidInputError, match="is a folder"):
            call(tmp_path)


@pytest.mark.parametrize("name", ["a\0b", "x" * 300, "x" * 252, "\ud800"])
def test_a_path_that_no_file_can_have_is_refused(tmp_path, name):
    for path in (f"{tmp_path}/{name}", tmp_path / name):
        with pytest.raises(InvalidInputError, match="kept in a file"):
            voice().save(path)
        with pytest.raises(CheckpointError if len(name) == 252 else InvalidInputError):
            Voice.load(path)
    assert not list(tmp_path.iterdir())


def test_a_pipe_is_refused_without_waiting_for_it(tmp_path):
    os.mkfifo(tmp_path / "pipe.safetensors")
    for call in (voice().save, Voice.load):
        with pytest.raises(InvalidInputError, match="is no file"):
            call(tmp_path / "pipe.safetensors")


def test_unprintable_texts_are_shown_escaped():
    assert "\x1b" not in repr(voice(name="\x1b[2J", language="\x1b[2J", source="\x1b[2J", transcript="\x1b[2J"))


def test_a_file_that_is_not_there(tmp_path):
    with pytest.raises(CheckpointError, match="Cannot read"):
        Voice.load(tmp_path / "none.safetensors")


def test_a_tilde_is_the_home_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("USERPROFILE", str(tmp_path))
    voice = Voice("anna", np.ones(8, np.float32))
    assert voice.save("~/anna.safetensors") == tmp_path / "anna.safetensors"
    assert Voice.load("~/anna.safetensors") == voice
    assert [v.name for v in Voice.saved("~")] == ["anna"]


def test_a_file_in_the_place_of_a_folder_says_so(tmp_path):
    (tmp_path / "f").write_bytes(b"x")
    with pytest.raises(ArtifactError, match="Could not write"):
        Voice("anna", np.ones(8, np.float32)).save(tmp_path / "f" / "anna.safetensors")
