"""Makes the vendor's package qwen-tts 0.1.1 importable on transformers 5, as an oracle for tests.

    import vendor_qwen_tts  # first
    from qwen_tts import Qwen3TTSModel, Qwen3TTSTokenizer

qwen-tts pins transformers 4.57.3. What it uses that transformers 5 changed is put back here, each with its reason; the
arithmetic is the vendor's own, but for one thing: the codec's encoder is transformers' Mimi, which applies its sliding
window since transformers 5 and ignored it in 4.57.3 (`full_attention_encoder` gives that behaviour back).
Packages that only the 25 Hz tokenizer uses, which no test runs, are replaced by empty modules where they are missing.
"""

from __future__ import annotations

import importlib.machinery
import importlib.util
import json
import re
import sys
import types
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import transformers
import transformers.configuration_utils as configuration_utils
import transformers.masking_utils as masking
import transformers.modeling_rope_utils as rope_utils
import transformers.utils.generic as generic
from safetensors.torch import load_file
from transformers import MimiModel, PretrainedConfig
from transformers.models.mimi import modeling_mimi

ONLY_25HZ = ("torchaudio", "torchaudio.compliance", "torchaudio.compliance.kaldi", "sox", "onnxruntime", "einops")


def _module(name: str) -> types.ModuleType:
    made = types.ModuleType(name)
    made.__spec__ = importlib.machinery.ModuleSpec(name, None)
    sys.modules[name] = made
    return made


def _replace_missing_packages() -> None:
    for name in ONLY_25HZ:
        parent, _, leaf = name.rpartition(".")
        if name in sys.modules or (not _made(name.partition(".")[0]) and importlib.util.find_spec(name) is not None):
            continue
        made = _module(name)
        if parent:
            setattr(sys.modules[parent], leaf, made)
        if name == "einops":
            made.rearrange = made.repeat = None


def _made(package: str) -> bool:
    """Whether the package is one of ours: its parts are then ours too."""
    return package in sys.modules and sys.modules[package].__spec__.loader is None


def _default_rope(config: Any, device: Any = None, seq_len: int | None = None, **_: Any) -> tuple[torch.Tensor, float]:
    """ROPE_INIT_FUNCTIONS["default"] of 4.57.3."""
    width = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    theta = getattr(config, "rope_theta", None) or config.rope_parameters["rope_theta"]
    steps = torch.arange(0, width, 2, dtype=torch.int64).to(device=device, dtype=torch.float)
    return 1.0 / (theta ** (steps / width)), 1.0


def _set_rope_scaling(config: Any, value: Any) -> None:
    config.rope_parameters = value
    if value is not None and getattr(config, "_post_init_done", False):
        config.standardize_rope_params()


def _restore_transformers_4() -> None:
    # `@check_model_inputs()` was a decorator with arguments. The vendor collects hidden states itself.
    generic.check_model_inputs = lambda *a, **k: a[0] if a and callable(a[0]) else (lambda method: method)
    rope_utils.ROPE_INIT_FUNCTIONS.setdefault("default", _default_rope)
    for name in ("pad_token_id", "bos_token_id", "eos_token_id"):  # plain configs had them, as None
        if not hasattr(PretrainedConfig, name):
            setattr(PretrainedConfig, name, None)
    rope_utils.rope_config_validation = lambda *a, **k: None  # checks that transformers 5 makes elsewhere
    configuration_utils.layer_type_validation = lambda *a, **k: None
    scaling = PretrainedConfig.rope_scaling  # the setter works, with a warning at each use
    PretrainedConfig.rope_scaling = property(scaling.fget, _set_rope_scaling)
    # Qwen3TTSTokenizerV2Encoder sets both to None to drop them; in transformers 5 they are read-only views.
    for name in ("upsample", "decoder_transformer"):
        setattr(MimiModel, name, property(getattr(MimiModel, name).fget, lambda self, value: None))


_OFFICIAL_TO_TRANSFORMERS_5 = (
    (r"encoder\.encoder\.(.*)", r"encoder.encoder.encoder_seanet.\1"),
    (r"encoder\.encoder_transformer\.(.*)", r"encoder.encoder.encoder_transformer.\1"),
    (r"encoder\.downsample\.(.*)", r"encoder.encoder.downsample.\1"),
)


def _renamed(name: str) -> str:
    for pattern, target in _OFFICIAL_TO_TRANSFORMERS_5:
        if re.fullmatch(pattern, name):
            return re.sub(pattern, target, name)
    return name


def _load_codec(cls: Any, folder: Any, *_: Any, dtype: torch.dtype = torch.float32, **__: Any) -> Any:
    """from_pretrained of the 12 Hz codec: Mimi's parts moved in transformers 5, so the official names are mapped."""
    folder = Path(folder)
    config = cls.config_class.from_dict(json.loads((folder / "config.json").read_text("utf-8")))
    config._attn_implementation = "sdpa"
    config.encoder_config._attn_implementation = config.decoder_config._attn_implementation = "sdpa"
    model = cls(config)
    weights = load_file(folder / "model.safetensors")
    model.load_state_dict({_renamed(name): value for name, value in weights.items()}, strict=True)
    return model.to(dtype).eval()


def _mask_of_4(make: Callable[..., Any]) -> Callable[..., Any]:
    """A mask function that takes the arguments of 4.57.3."""

    def made(*, input_embeds: torch.Tensor, cache_position: torch.Tensor | None = None, **rest: Any) -> Any:
        return make(inputs_embeds=input_embeds, **rest)

    return made


@contextmanager
def full_attention_encoder() -> Iterator[None]:
    """Mimi's encoder as transformers 4.57.3 ran it: full causal attention, whatever `sliding_window` says."""
    windowed = modeling_mimi.create_sliding_window_causal_mask
    modeling_mimi.create_sliding_window_causal_mask = masking.create_causal_mask
    try:
        yield
    finally:
        modeling_mimi.create_sliding_window_causal_mask = windowed


if int(transformers.__version__.partition(".")[0]) < 5:
    raise ImportError(f"vendor_qwen_tts is written for transformers 5, found {transformers.__version__}.")
_replace_missing_packages()
_restore_transformers_4()

from qwen_tts.core import Qwen3TTSTokenizerV2Model  # noqa: E402
from qwen_tts.core.models import modeling_qwen3_tts, processing_qwen3_tts  # noqa: E402
from qwen_tts.core.tokenizer_12hz import modeling_qwen3_tts_tokenizer_v2  # noqa: E402

Qwen3TTSTokenizerV2Model.from_pretrained = classmethod(_load_codec)
for _using in (modeling_qwen3_tts, modeling_qwen3_tts_tokenizer_v2):
    for _name in ("create_causal_mask", "create_sliding_window_causal_mask"):
        setattr(_using, _name, _mask_of_4(getattr(masking, _name)))
for _class in (
    modeling_qwen3_tts.Qwen3TTSTalkerForConditionalGeneration,
    modeling_qwen3_tts.Qwen3TTSTalkerCodePredictorModelForConditionalGeneration,
):
    _class._tied_weights_keys = None  # a list in 4.57.3; nothing is tied
# The check walks through every tokenizer class of transformers, some of which need packages of their own.
processing_qwen3_tts.Qwen3TTSProcessor.check_argument_for_proper_class = lambda self, name, argument: type(argument)
