"""Llama-shaped chat models (SmolLM2): from a GGUF file, an official folder, or random weights, to a TextModel.

The verbs and their shapes are in `families/shared/text_model.py`.
"""

from __future__ import annotations

from izwi_lab.artifacts.checkpoint import Checkpoint
from izwi_lab.families.llama import config as configs
from izwi_lab.families.llama.weights import gguf_rules, hf_rules
from izwi_lab.families.shared.nets.decoder.config import DecoderConfig
from izwi_lab.families.shared.text_loader import TextFamily, gguf_vocabulary, loader

_FACTORS = "rope_freqs.weight"


def _from_gguf(checkpoint: Checkpoint) -> DecoderConfig:
    vocab_size, tied = gguf_vocabulary(checkpoint)
    factors = checkpoint.read(_FACTORS).float32().ravel().tolist() if _FACTORS in checkpoint.names else []
    return configs.from_gguf(checkpoint.config, vocab_size=vocab_size, tied=tied, rope_factors=factors)


# Ends of a turn in ChatML and in Llama 3, and of a text in Llama 3.
STOPS = ("<|im_end|>", "<|eot_id|>", "<|end_of_text|>")

load = loader(TextFamily("llama", configs.from_hf, hf_rules, _from_gguf, gguf_rules, STOPS))
