"""Checkpoint names of Qwen3-TTS to those of the nets, for official and MLX folders, and random weights.

Official names are the net's own. MLX's folders quantise every Linear and no embedding, and keep the convolutions of
the speaker encoder with the channels last.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from izwi_lab.artifacts.tensors import AffineTensor, Tensor
from izwi_lab.errors import CheckpointError
from izwi_lab.families.qwen3_tts.config import TTSConfig
from izwi_lab.families.shared import dummy_weights as dummies
from izwi_lab.families.shared.weights import Rule, Weight

PACKAGE = "izwi_lab.families.qwen3_tts"
# Half of the 0.6B is the embedding of text, of which a prompt reads a few rows: it is mapped, not copied.
KEEP_STORED = ("talker.model.text_embedding.weight",)

_SPEAKER = r"speaker_encoder\."
_OWN = ("model.embed_tokens.", "lm_head.")  # of a language model: here there are others in their places


def net_rules(config: TTSConfig) -> tuple[Rule, ...]:
    """For `TTSNet`. Only base models have a speaker encoder, which is a net of its own."""
    return (Rule(_SPEAKER + ".*", None),) if config.kind == "base" else ()


def speaker_rules(*, mlx: bool = False) -> tuple[Rule, ...]:
    """For `SpeakerEncoder`: its part of the checkpoint, without the prefix. mlx: convolutions are [out, K, in]."""
    conv = (Rule(_SPEAKER + r"(.*\.weight)", r"\1", _taps_last),) if mlx else ()
    return (*conv, Rule(_SPEAKER + "(.*)", r"\1"), Rule(".*", None))


def dummy_weights(config: TTSConfig, table: Mapping[str, Any] | None) -> dummies.DummyWeights | None:
    """Random weights in the form of a quantised variant. table: `quantization` of config.json; None where there is
    none, and the backend makes dense weights.
    """
    if not table:
        return None
    form = {"bits": table["bits"], "group_size": table["group_size"]}
    return dummies.DummyWeights(shapes(config), dense=("_embedding.",), **form)


def shapes(c: TTSConfig) -> dict[str, tuple[int, ...]]:
    """Names and shapes of the weights of `TTSNet`."""
    width, rest, predictor = c.talker.hidden_size, range(c.codebooks - 1), "talker.code_predictor"
    out: dict[str, tuple[int, ...]] = {
        "talker.model.text_embedding.weight": (c.text_vocab, c.text_width),
        "talker.model.codec_embedding.weight": (c.talker.vocab_size, width),
        "talker.text_projection.linear_fc1.weight": (c.text_width, c.text_width),
        "talker.text_projection.linear_fc1.bias": (c.text_width,),
        "talker.text_projection.linear_fc2.weight": (width, c.text_width),
        "talker.text_projection.linear_fc2.bias": (width,),
        "talker.codec_head.weight": (c.talker.vocab_size, width),
    }
    for prefix, decoder in (("talker", c.talker), (predictor, c.predictor)):
        inner = dummies.shapes(decoder)
        out |= {f"{prefix}.{name}": shape for name, shape in inner.items() if not name.startswith(_OWN)}
    for i in rest:
        out[f"{predictor}.model.codec_embedding.{i}.weight"] = (c.predictor_vocab, width)
        out[f"{predictor}.lm_head.{i}.weight"] = (c.predictor_vocab, c.predictor.hidden_size)
    if c.projected:
        out[f"{predictor}.small_to_mtp_projection.weight"] = (c.predictor.hidden_size, width)
        out[f"{predictor}.small_to_mtp_projection.bias"] = (c.predictor.hidden_size,)
    return out


def _taps_last(weight: Weight) -> Weight:
    if isinstance(weight, AffineTensor):
        raise CheckpointError("The speaker encoder is quantised.", hint="Expected plain floats there.")
    return Tensor(np.ascontiguousarray(weight.data.transpose(0, 2, 1)), weight.dtype)
