"""Tiny random text models of both backends, with a sliding window, a convolution and a byte-level tokenizer."""

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

from izwi_lab import catalog
from izwi_lab.backends.base import BackendPlan
from izwi_lab.backends.mlx_backend import MLXBackend
from izwi_lab.backends.torch_backend import TorchBackend
from izwi_lab.families.shared.detokenizer import TokenBytes
from izwi_lab.families.shared.nets.decoder.config import CONV, FULL, SLIDING, DecoderConfig, rope
from izwi_lab.families.shared.prompts import PromptEncoder
from izwi_lab.families.shared.text_model import TextModel
from izwi_lab.families.shared.text_processor import TextProcessor

WINDOW = 8
TOKENS = ["<|end|>", *sorted(pre_tokenizers.ByteLevel.alphabet()), "Ġt", "th"]
CONFIG = DecoderConfig(
    vocab_size=len(TOKENS), hidden_size=32, intermediate_size=48, num_layers=3, num_heads=4, num_kv_heads=2, head_dim=8,
    max_positions=1024, ropes=((FULL, rope(8, 10_000.0)), (SLIDING, rope(8, 10_000.0))),
    layer_types=(SLIDING, FULL, CONV), window=WINDOW, conv_kernel=3,
)  # fmt: skip


def tokenizer() -> Tokenizer:
    made = Tokenizer(models.BPE(vocab={t: i for i, t in enumerate(TOKENS)}, merges=[("Ġ", "t"), ("t", "h")]))
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    made.add_special_tokens([AddedToken("<|end|>", special=True, normalized=False)])
    return made


def tiny(backend: str, *, config: DecoderConfig = CONFIG, words: bool = True) -> TextModel:
    """words: with a tokenizer, but no chat template."""
    opened = TorchBackend() if backend == "torch" else MLXBackend("cpu")
    net = opened.net("izwi_lab.families.shared.nets.decoder", "DecoderLM", config, None, seed=5)
    made = tokenizer()
    processor = TextProcessor(made, PromptEncoder(made), TokenBytes(made), None, frozenset({0}), {}) if words else None
    plan = BackendPlan(opened.name, opened.device, opened.dtype, "test")
    return TextModel(catalog.get("SmolLM2-135M-Instruct"), plan, opened, net, config, processor)
