"""Gemma 3 text models: from an official folder, MLX's, a GGUF file, or random weights, to a TextModel.

Multimodal checkpoints (4B and up) give their text model; images are not read.
The verbs and their shapes are in `families/shared/text_model.py`.
"""

from __future__ import annotations

from izwi_lab.artifacts.checkpoint import Checkpoint
from izwi_lab.families.gemma3 import config as configs
from izwi_lab.families.gemma3.weights import gguf_rules, hf_rules
from izwi_lab.families.shared.nets.decoder.config import DecoderConfig
from izwi_lab.families.shared.text_loader import TextFamily, gguf_vocabulary, loader


def _from_gguf(checkpoint: Checkpoint) -> DecoderConfig:
    vocab_size, tied = gguf_vocabulary(checkpoint)
    return configs.from_gguf(checkpoint.config, vocab_size=vocab_size, tied=tied)


STOPS = ("<eos>", "<end_of_turn>")  # eos_token_id of the official generation_config.json: 1 and 106

load = loader(TextFamily("gemma3", configs.from_hf, hf_rules, _from_gguf, gguf_rules, STOPS))
