"""Whole tiny checkpoints with their speech tokenizer, loaded by us and by the vendor's package."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from types import ModuleType

import numpy as np
import tiny_tts
import torch
import vendor_qwen_tts  # noqa: F401 - makes qwen_tts importable
from qwen_tts import Qwen3TTSModel, Qwen3TTSTokenizer
from qwen_tts.core.models import Qwen3TTSConfig, Qwen3TTSForConditionalGeneration
from safetensors.numpy import load_file, save_file
from transformers import Qwen2TokenizerFast

from izwi_lab import catalog
from izwi_lab.audio import Audio
from izwi_lab.backends import open_backend
from izwi_lab.backends.base import BackendPlan
from izwi_lab.families.qwen3_tts.model import load
from izwi_lab.families.shared.sampling import Sampling

SUFFIX = {"base": "Base", "custom_voice": "CustomVoice", "voice_design": "VoiceDesign"}
GREEDY = {"sampling": Sampling(repetition_penalty=1.05), "predictor": Sampling()}
VENDOR_GREEDY = {"do_sample": False, "subtalker_dosample": False}
END = tiny_tts.CODEC_IDS["codec_eos_token_id"] - tiny_tts.SHIFT


def tiny_codec() -> ModuleType:
    """What writes tiny codecs, from another folder of tests."""
    path = Path(__file__).parents[2] / "codecs" / "tiny_codec_12hz.py"
    spec = importlib.util.spec_from_file_location("tiny_codec_12hz", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def checkpoint(folder: Path, kind: str = "custom_voice", *, projected: bool = True, end: float = 0.1) -> Path:
    """Write one. end: of the end code's logit, beside the others; at 3 it stops by itself after some frames."""
    tiny_tts.write(folder, kind, projected=projected)
    tiny_codec().write(folder / "speech_tokenizer")
    path = folder / "model.safetensors"
    weights = load_file(path)
    weights["talker.codec_head.weight"][END] *= end
    save_file(weights, path, metadata={"format": "pt"})
    return folder


def ours(folder: Path, backend: str = "torch"):
    """Our model on a checkpoint."""
    values = json.loads((folder / "config.json").read_text("utf-8"))
    size = "1.7B" if values["tts_model_size"] == "1b7" else "0.6B"
    variant = catalog.get(f"Qwen3-TTS-12Hz-{size}-{SUFFIX[values['tts_model_type']]}")
    plan = BackendPlan(backend, "cpu", "float32", "test")
    return load(variant, folder, plan, open_backend(plan), layout="hf")


def vendor(folder: Path) -> Qwen3TTSModel:
    """The vendor's whole wrapper on the same files."""
    values = json.loads((folder / "config.json").read_text("utf-8"))
    net = Qwen3TTSForConditionalGeneration(Qwen3TTSConfig(**{k: v for k, v in values.items() if k != "model_type"}))
    state = load_file(folder / "model.safetensors")
    net.load_state_dict({name: torch.from_numpy(value) for name, value in state.items()})
    net.load_speech_tokenizer(Qwen3TTSTokenizer.from_pretrained(str(folder / "speech_tokenizer")))
    tokenizer = Qwen2TokenizerFast.from_pretrained(str(folder))
    return Qwen3TTSModel(net.eval(), lambda text, **_: tokenizer(text, return_tensors="pt"))


def clip(seconds: float = 2.0, rate_hz: int = 24000) -> Audio:
    """Something to clone: a tone with noise."""
    t = np.arange(round(seconds * rate_hz))
    noise = 0.05 * np.random.default_rng(0).standard_normal(len(t))
    return Audio((0.3 * np.sin(t * 0.03) + noise).astype(np.float32), rate_hz)


def by_hand(model, prompt, *, frames: int, seed: int = 0, sampling=None, predictor=None):
    """The session of a prompt spoken verb by verb."""
    session = model.session(seed=seed, max_frames=frames)
    step = model.prefill(session, prompt)
    while not session.done:
        step = model.decode(session, model.sample(session, step, sampling), sampling=predictor)
    return session
