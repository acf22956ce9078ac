"""Tiny random checkpoints of the text families, in official layouts, and what transformers says to them."""

from __future__ import annotations

import functools
import json
from pathlib import Path

import numpy as np
import torch
import transformers as tf
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

from izwi_lab import catalog
from izwi_lab.artifacts.local_model import detect_layout
from izwi_lab.backends.base import BackendPlan
from izwi_lab.backends.mlx_backend import MLXBackend
from izwi_lab.backends.torch_backend import TorchBackend
from izwi_lab.runtime.load import family_loader

VOCAB, WINDOW = 320, 8
PREFILL, STEPS = 240, 32  # over the window, past a bucket of 128, and round the ring of a sliding layer
IDS = np.random.default_rng(9).integers(0, VOCAB - 8, PREFILL + STEPS).astype(np.int32)
SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
TEMPLATE = "{% for m in messages %}{{'<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>\n'}}{% endfor %}"
# width 64: its square root is exact in bfloat16, to which mlx-lm always rounds Gemma's embedding scale
SIZES = dict(
    vocab_size=VOCAB,
    hidden_size=64,
    intermediate_size=128,
    num_attention_heads=4,
    num_key_value_heads=2,
    max_position_embeddings=2048,
)
GEMMA = dict(
    **SIZES, head_dim=32, num_hidden_layers=7, sliding_window=WINDOW, query_pre_attn_scalar=24, rms_norm_eps=1e-6
)
VISION = dict(
    hidden_size=16, intermediate_size=24, num_hidden_layers=1, num_attention_heads=2, image_size=28, patch_size=14
)
LFM2_TYPES = ["conv", "full_attention", "conv", "conv"]
VARIANTS = {"llama": "SmolLM2-135M-Instruct", "qwen3": "Qwen3-0.6B", "gemma3": "Gemma-3-1b-it", "lfm2": "LFM2-350M"}


def _llama(**more):
    rope = {"rope_type": "default", "rope_theta": 1e5}
    return tf.LlamaForCausalLM(
        tf.LlamaConfig(
            **{**SIZES, **more}, num_hidden_layers=2, tie_word_embeddings=True, rms_norm_eps=1e-5, rope_parameters=rope
        )
    )


def _qwen3(*, tied=True, **more):
    rope = {"rope_type": "default", "rope_theta": 1e6}
    sizes = {**SIZES, "head_dim": 32, **more}
    return tf.Qwen3ForCausalLM(
        tf.Qwen3Config(**sizes, num_hidden_layers=2, tie_word_embeddings=tied, rms_norm_eps=1e-6, rope_parameters=rope)
    )


def _gemma3(**more):
    return tf.Gemma3ForCausalLM(tf.Gemma3TextConfig(**{**GEMMA, **more}))


def _gemma3_images():
    ropes = {
        "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 1e6},
        "sliding_attention": {"rope_type": "default", "rope_theta": 1e4},
    }
    config = tf.Gemma3Config(
        text_config={**GEMMA, "rope_parameters": ropes}, vision_config=VISION, mm_tokens_per_image=1,
        image_token_index=VOCAB - 1, boi_token_index=VOCAB - 2, eoi_token_index=VOCAB - 3,
    )  # fmt: skip
    return tf.Gemma3ForConditionalGeneration(config)


def _lfm2(**more):
    return tf.Lfm2ForCausalLM(
        tf.Lfm2Config(
            **{**SIZES, **more},
            num_hidden_layers=len(LFM2_TYPES),
            layer_types=LFM2_TYPES,
            conv_L_cache=3,
            norm_eps=1e-5,
            block_multiple_of=64,
            block_auto_adjust_ff_dim=True,
            rope_parameters={"rope_type": "default", "rope_theta": 1e6},
        )
    )


def _old_qwen3(config):
    config.pop("rope_parameters"), config.pop("layer_types")
    config |= dict(rope_theta=1000000, rope_scaling=None, sliding_window=None, use_sliding_window=False)


def _old_gemma3(config):
    config.pop("rope_parameters"), config.pop("layer_types")
    config |= dict(rope_theta=1000000, rope_local_base_freq=10000, rope_scaling=None, sliding_window_pattern=6)


def _old_gemma3_images(config):
    text = config["text_config"]
    text.pop("rope_parameters"), text.pop("layer_types")
    text["rope_scaling"] = {"factor": 8.0, "rope_type": "linear"}  # and the rest by the class defaults, as published
    config["vocab_size"] = VOCAB  # mlx-lm reads it here


def _old_lfm2(config):
    for name in ("rope_parameters", "layer_types", "tie_word_embeddings"):
        config.pop(name)
    config |= dict(full_attn_idxs=[1], block_ff_dim=config.pop("intermediate_size"), rope_theta=1e6, block_dim=64)


# name -> (family, the transformers model, what an older config.json says otherwise)
CASES = {
    "llama": ("llama", _llama, lambda c: c.update(rope_theta=1e5)),  # mlx-lm reads the rope there
    "qwen3": ("qwen3", _qwen3, None),
    "qwen3-old-untied": ("qwen3", functools.partial(_qwen3, tied=False), _old_qwen3),
    "gemma3": ("gemma3", _gemma3, None),
    "gemma3-old": ("gemma3", _gemma3, _old_gemma3),
    "gemma3-images": ("gemma3", _gemma3_images, None),
    "gemma3-images-old": ("gemma3", _gemma3_images, _old_gemma3_images),
    "lfm2": ("lfm2", _lfm2, None),
    "lfm2-old": ("lfm2", _lfm2, _old_lfm2),
}
MLX_LM = ("llama", "qwen3-old-untied", "gemma3-old", "gemma3-images-old", "lfm2-old")  # those mlx-lm understands


@functools.cache
def random_model(name: str, **more) -> torch.nn.Module:
    """The transformers model of a case, its weights drawn so that every part counts."""
    model = CASES[name][1](**more).float().eval()
    draw = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for key, value in model.named_parameters():
            noise = torch.randn(value.shape, generator=draw)
            if value.dim() == 1:
                value.copy_(0.2 * noise + (0.0 if name.startswith("gemma3") or key.endswith("bias") else 1.0))
            else:
                value.copy_(noise * (0.3 if "embed" in key else 1.5 / value[0].numel() ** 0.5))
    return model


def write_folder(folder: Path, name: str, *, shard: str | None = None) -> Path:
    """Config, weights and tokenizer, as official repositories hold them. shard: the most a file may hold."""
    model = random_model(name)
    model.save_pretrained(folder, **({"max_shard_size": shard} if shard else {}))
    if old := CASES[name][2]:
        path = folder / "config.json"
        config = json.loads(path.read_text())
        old(config)
        path.write_text(json.dumps(config))
    write_tokenizer(folder)
    return folder


def vocabulary() -> list[str]:
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    return [*SPECIAL, *letters, "Ġt", "th", *(f"<|r{i}|>" for i in range(VOCAB - len(SPECIAL) - len(letters) - 2))]


def write_tokenizer(folder: Path) -> None:
    tokens = vocabulary()
    tokenizer = Tokenizer(models.BPE(vocab={t: i for i, t in enumerate(tokens)}, merges=[("Ġ", "t"), ("t", "h")]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(t, special=True, normalized=False) for t in SPECIAL])
    tokenizer.save(str(folder / "tokenizer.json"))
    settings = {"eos_token": "<|im_end|>", "chat_template": TEMPLATE, "tokenizer_class": "PreTrainedTokenizerFast"}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))


def open_family(name: str, folder: Path | None, backend=None, *, layout: str | None = None, load_format="auto"):
    """Through the family's own loader, as `izwi.load` does."""
    backend = backend or TorchBackend()
    variant = catalog.get(VARIANTS[CASES[name][0]])
    plan = BackendPlan(backend.name, backend.device, backend.dtype, "test")
    layout = layout or str(detect_layout(folder))
    return family_loader(variant)(variant, folder, plan, backend, layout=layout, load_format=load_format)


def both_backends():
    return (TorchBackend(), MLXBackend("cpu"))


def expected_logits(model: torch.nn.Module, ids: np.ndarray = IDS) -> np.ndarray:
    """Transformers' logits [T, V]."""
    with torch.inference_mode():
        return model(input_ids=torch.from_numpy(ids[None].astype(np.int64))).logits[0].float().numpy()


def step_logits(model, ids: np.ndarray = IDS, prefill: int = PREFILL) -> np.ndarray:
    """Ours, after the prompt and after each further token: [1 + steps, V]."""
    state, at, out = model.net.state(), 0, []
    for size in (prefill, *[1] * (len(ids) - prefill)):
        with model.backend.inference():
            logits, _ = model.net(model.backend.array(ids[None, at : at + size]), state)
            out.append(model.backend.numpy(logits)[0].copy())
        at += size
    return np.stack(out)
