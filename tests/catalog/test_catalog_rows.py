"""The rows of the catalog: complete, consistent, and the original's 32 among them."""

from __future__ import annotations

import copy
import pickle
import re
from pathlib import PurePosixPath

import pytest

from izwi_lab import catalog
from izwi_lab.catalog import Family, Layout, StarterPack, Task
from izwi_lab.errors import InvalidInputError

ROWS = catalog.variants(include_disabled=True)

# id -> (bytes, enabled) in izwi 0.1.0-alpha-8, in its order. Voxtral's bytes were an estimate and are corrected here.
ORIGINAL = {
    "Qwen3-TTS-12Hz-0.6B-Base": (2516106051, True),
    "Qwen3-TTS-12Hz-0.6B-Base-4bit": (1711328624, False),
    "Qwen3-TTS-12Hz-0.6B-Base-8bit": (1991299138, False),
    "Qwen3-TTS-12Hz-0.6B-Base-bf16": (2516143009, False),
    "Qwen3-TTS-12Hz-0.6B-CustomVoice": (2498388392, True),
    "Qwen3-TTS-12Hz-0.6B-CustomVoice-4bit": (1693604738, False),
    "Qwen3-TTS-12Hz-0.6B-CustomVoice-8bit": (1973575388, False),
    "Qwen3-TTS-12Hz-0.6B-CustomVoice-bf16": (2498419405, False),
    "Qwen3-TTS-12Hz-1.7B-Base": (4544229700, True),
    "Qwen3-TTS-12Hz-1.7B-CustomVoice": (4520218951, True),
    "Qwen3-TTS-12Hz-1.7B-VoiceDesign": (4520163832, True),
    "Qwen3-TTS-12Hz-1.7B-VoiceDesign-4bit": (2312058795, False),
    "Qwen3-TTS-12Hz-1.7B-VoiceDesign-8bit": (3080140867, False),
    "Qwen3-TTS-12Hz-1.7B-VoiceDesign-bf16": (4520194992, False),
    "Qwen3-TTS-Tokenizer-12Hz": (682300739, True),
    "LFM2-Audio-1.5B": (3000000000, True),
    "LFM2.5-Audio-1.5B": (3200000000, True),
    "Qwen3-ASR-0.6B": (1880619678, True),
    "Qwen3-ASR-0.6B-4bit": (712781279, False),
    "Qwen3-ASR-0.6B-8bit": (1010773761, False),
    "Qwen3-ASR-0.6B-bf16": (1569438434, False),
    "Qwen3-ASR-1.7B": (4703114308, True),
    "Qwen3-ASR-1.7B-4bit": (1607633106, False),
    "Qwen3-ASR-1.7B-8bit": (2467859030, False),
    "Qwen3-ASR-1.7B-bf16": (4080710353, False),
    "Parakeet-TDT-0.6B-v2": (4926457088, True),
    "Parakeet-TDT-0.6B-v3": (10036761167, True),
    "Qwen3-0.6B-4bit": (900000000, True),
    "Gemma-3-1b-it": (2200000000, True),
    "Gemma-3-4b-it": (8600000000, False),
    "Qwen3-ForcedAligner-0.6B": (1840072459, True),
    "Voxtral-Mini-4B-Realtime-2602": (8860000000, False),
}
ADDED = {
    *("Kokoro-82M", "Whisper-tiny.en", "Whisper-base", "Whisper-large-v3-turbo", "SmolLM2-135M-Instruct"),
    *("Gemma-3-270m", "Qwen3-0.6B", "Qwen3-1.7B", "Qwen3-4B", "LFM2-350M", "LFM2-700M", "LFM2-1.2B", "Silero-VAD-v6"),
}


def test_the_original_variants_and_the_added_ones_are_all_there_is():
    assert {v.id for v in ROWS} == set(ORIGINAL) | ADDED
    assert len(ROWS) == 45


def test_originals_keep_their_bytes_and_whether_they_are_listed():
    assert {i: (catalog.get(i).size_bytes, catalog.get(i).enabled) for i in ORIGINAL} == ORIGINAL


def test_order_is_the_catalogs_own_and_stable():
    ids = [v.id for v in ROWS]
    assert [i for i in ids if i in ORIGINAL][:27] == list(ORIGINAL)[:27]
    assert ids == [v.id for v in catalog.variants(include_disabled=True)]


def test_disabled_rows_are_hidden_from_lists_say_why_and_can_be_named():
    hidden = set(ROWS) - set(catalog.variants())
    assert len(hidden) == 17
    assert all(v.disabled_reason and not v.enabled for v in hidden)
    assert all(not v.disabled_reason for v in catalog.variants())
    assert {catalog.get(v.id) for v in hidden} == hidden


@pytest.mark.parametrize("variant", ROWS, ids=str)
def test_a_row_is_complete(variant):
    assert re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9.-]*", variant.id), "an id is also a folder name"
    assert re.fullmatch(r"[\w.-]+/[\w.-]+", variant.repo)
    assert variant.revision == "main" or re.fullmatch(r"[0-9a-f]{40}", variant.revision)
    assert ("follows main" in variant.notes) == (variant.hub and variant.revision == "main")
    assert variant.licence and variant.tasks and variant.size_bytes > 0
    assert variant.task == variant.tasks[0]
    assert variant.files or not variant.hub or "all that the repo holds" in variant.notes
    assert not any("*" in f.name for f in variant.files)
    assert variant.quantisation in {"none", "4bit", "8bit"}
    assert (variant.layout == Layout.MLX) == variant.repo.startswith("mlx-community/")
    assert variant.dtype in {"float32", "float16", "bfloat16"}
    if variant.task in (Task.TTS, Task.ASR, Task.AUDIO_CHAT, Task.VAD):
        assert variant.sample_rate_hz in (16000, 24000)
        assert variant.languages


@pytest.mark.parametrize("variant", ROWS, ids=str)
def test_files_stay_inside_the_model_folder(variant):
    packs = [variant.starter, variant.starter.alternative] if variant.starter else []
    names = [f.name for f in variant.files] + [f.name for p in packs if p for f in p.files]
    for name in names:
        path = PurePosixPath(name)
        assert not path.is_absolute() and ".." not in path.parts and name == str(path)
    assert len({f.name for f in variant.files}) == len(variant.files)


def _packs() -> list[tuple[str, StarterPack]]:
    packs = [(v.id, v.starter) for v in ROWS if v.starter]
    return packs + [(f"{i} without npm", p.alternative) for i, p in packs if p.alternative]


@pytest.mark.parametrize("pack", [p for _, p in _packs()], ids=[i for i, _ in _packs()])
def test_a_starter_pack_pins_every_byte(pack):
    digest = re.compile(r"[0-9a-f]{64}")
    assert all(p.client in ("pip", "npm") and p.version and digest.fullmatch(p.sha256) for p in pack.packages)
    assert all(digest.fullmatch(f.sha256) and f.bytes > 0 and f.members for f in pack.files)
    assert pack.download_bytes == sum(p.bytes for p in pack.packages) > 0
    assert pack.installed_bytes == sum(f.bytes for f in pack.files)
    assert len({f.name for f in pack.files}) == len(pack.files)


def test_starter_file_names_are_those_the_families_read():
    named = {v.id: {f.name for f in v.starter.files if "/" not in f.name} for v in ROWS if v.starter}
    assert named == {
        "Kokoro-82M": {"kokoro-v1.0.int8.onnx", "vocab.json"},
        "Whisper-tiny.en": {"model.bin", "config.json", "tokenizer.json"},
        "Whisper-base": {"model.bin", "config.json", "tokenizer.json"},
        "SmolLM2-135M-Instruct": {"SmolLM2-135M-Instruct.Q4_1.gguf"},
        "Gemma-3-270m": {"gemma-3-270m-q4_k_m.gguf"},
        "Silero-VAD-v6": {"silero_vad.onnx"},
    }


def test_kokoro_has_all_voices_with_npm_and_five_without():
    kokoro = catalog.get("Kokoro-82M")
    whole, fewer = kokoro.starter.for_clients({"pip", "npm"}), kokoro.starter.for_clients({"pip"})
    assert whole is kokoro.starter and kokoro.starter.for_clients(set()) is None
    assert {f.name for f in whole.files if "/" in f.name} == {f"voices/{v}.bin" for v in kokoro.voices}
    assert len(kokoro.voices) == 54 and kokoro.settings["default_voice"] in kokoro.voices
    japanese = [f for f in fewer.files if "/" in f.name]
    assert {f.name for f in japanese} == {f"voices/{v}.bin" for v in kokoro.voices if v.startswith("j")}
    assert all(f.array and f"voices/{f.array}.bin" == f.name for f in japanese)
    pinned = {f.name: f.sha256 for f in whole.files}
    assert all(pinned[f.name] == f.sha256 for f in fewer.files), "the same file, wherever it comes from"


def test_a_default_is_a_listed_model_that_starter_packs_hold():
    assert {t: catalog.default(t).id for t in (Task.TTS, Task.ASR, Task.CHAT, Task.VAD)} == {
        Task.TTS: "Kokoro-82M",
        Task.ASR: "Whisper-base",
        Task.CHAT: "SmolLM2-135M-Instruct",
        Task.VAD: "Silero-VAD-v6",
    }
    with pytest.raises(InvalidInputError, match="forced_align"):
        catalog.default(Task.FORCED_ALIGN)


def test_variants_filters_by_task_and_family():
    assert {v.family for v in catalog.variants(task="tts")} == {Family.QWEN3_TTS, Family.LFM2_AUDIO, Family.KOKORO}
    assert [v.id for v in catalog.variants(Task.VAD)] == ["Silero-VAD-v6"]
    assert len(catalog.variants(family="whisper")) == 3
    for wrong in ({"task": "sing"}, {"family": "bark"}):
        with pytest.raises(InvalidInputError, match="Tasks: tts, asr"):
            catalog.variants(**wrong)


def test_table_has_a_row_of_plain_values_for_each_variant():
    rows = catalog.table()
    assert [r.id for r in rows] == [v.id for v in ROWS]
    assert [r.id for r in catalog.table("vad")] == ["Silero-VAD-v6"]
    kokoro = next(r for r in rows if r.id == "Kokoro-82M")
    assert (kokoro.voices, kokoro.starter, kokoro.tasks, kokoro.release) == (54, True, ("tts",), "0.1")
    assert len(catalog.table(include_disabled=False)) == 28


def test_capabilities_say_what_runs_here_and_otherwise_when():
    mlx = catalog.capabilities(catalog.get("Qwen3-TTS-12Hz-0.6B-Base-4bit"))
    assert (mlx.backend_hint, mlx.task, mlx.release) == ("mlx", Task.TTS, "0.3")
    for variant in ROWS:
        can = catalog.capabilities(variant)
        assert can.runnable == bool(can.backends) == (not can.reason)
        assert set(can.backends) <= {"torch", "mlx"}
        assert can.runnable or "no family" in can.reason


def test_a_row_or_a_variant_cannot_be_changed():
    variant = catalog.get("Kokoro-82M")
    with pytest.raises((AttributeError, TypeError)):
        variant.repo = "other/repo"
    with pytest.raises(TypeError):
        variant.settings["default_voice"] = "x"
    assert catalog.get(variant) is variant


def test_a_variant_is_shown_in_one_line():
    assert repr(catalog.get("Silero-VAD-v6")) == "ModelVariant('Silero-VAD-v6', silero_vad, vad, silero_onnx, 2 MB)"
    assert str(catalog.get("kokoro")) == "Kokoro-82M"


def test_a_variant_can_be_a_key_be_copied_and_be_sent_to_another_process():
    variant = catalog.get("Kokoro-82M")
    assert {variant: 1}[variant] == 1
    assert copy.deepcopy(variant) == pickle.loads(pickle.dumps(variant)) == variant
    assert dict(variant.settings) == {"default_voice": "af_heart"} and repr(variant.settings).startswith("{")
