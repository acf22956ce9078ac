"""The vendor's own prompts as an oracle: its wrapper, tokenizer and tables on a tiny random model that never runs.

What the vendor hands to its talker is caught at the door: embeddings of the prompt and of the text to follow.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import torch
import vendor_qwen_tts  # noqa: F401 - makes qwen_tts importable
from qwen_tts import Qwen3TTSModel
from qwen_tts.core.models import Qwen3TTSConfig, Qwen3TTSForConditionalGeneration
from qwen_tts.inference.qwen3_tts_model import VoiceClonePromptItem
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

from izwi_lab.families.qwen3_tts.config import TTSConfig
from izwi_lab.families.qwen3_tts.processor import Processor

SPECIAL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<tts_pad>", "<tts_text_bos>", "<tts_text_eod>")
CODEBOOKS, HIDDEN, CODES = 16, 48, 64
TEXTS = (
    "Hello there, how are you? It's 1234 o'clock; we're HERE.\n\nNew paragraph\twith tabs.  Two spaces.",
    "你好，世界！今天天气很好。我们去公园吧？",
    "Привет, как дела? Ça va très bien — naïve café. ¿Qué tal?",
    "안녕하세요. こんにちは、元気ですか。 e\u0301 ﬁ \u200b 🙂👍🏽",
    "line one\r\nline two \r\n  indented 'll 'LL don't 3.14159 a_b <b>x</b> https://x.org/?q=1",
)
# Ids as in the official layout: codes, then control ids, languages and voices.
TALKER = {
    "vocab_size": 1152, "hidden_size": HIDDEN, "intermediate_size": 64, "num_hidden_layers": 1,
    "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 16, "rope_theta": 1000000,
    "max_position_embeddings": 4096, "num_code_groups": CODEBOOKS, "text_hidden_size": 40, "text_vocab_size": 1024,
    "rope_scaling": {"interleaved": True, "mrope_section": [4, 2, 2], "rope_type": "default", "type": "default"},
    "codec_pad_id": 68, "codec_bos_id": 69, "codec_eos_token_id": 70, "codec_think_id": 74, "codec_nothink_id": 75,
    "codec_think_bos_id": 76, "codec_think_eos_id": 77,
    "codec_language_id": {"chinese": 81, "english": 80, "german": 84, "sichuan_dialect": 82},
}  # fmt: skip
PREDICTOR = {
    "vocab_size": CODES, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 1, "num_attention_heads": 2,
    "num_key_value_heads": 1, "head_dim": 16, "rope_theta": 1000000, "max_position_embeddings": 512,
    "num_code_groups": CODEBOOKS,
}  # fmt: skip
SPEAKER = {
    "enc_dim": HIDDEN, "mel_dim": 128, "enc_channels": [16, 16, 16, 16, 48], "enc_kernel_sizes": [5, 3, 3, 3, 1],
    "enc_dilations": [1, 2, 3, 4, 1], "enc_attention_channels": 8, "enc_res2net_scale": 4, "enc_se_channels": 8,
    "sample_rate": 24000,
}  # fmt: skip


def write_tokenizer(folder: Path, *, gap: int = 0) -> dict[str, int]:
    """vocab.json, merges.txt and tokenizer_config.json as official speech checkpoints have them; ids of SPECIAL.

    gap: ids left out before the added tokens.
    """
    trained = Tokenizer(models.BPE())
    trained.normalizer = normalizers.NFC()
    trained.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(r"\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+|\s+"), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    trained.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=420, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False
    )
    trained.train_from_iterator([*["assistant\nuser\n"] * 50, *TEXTS * 3], trainer)
    trained.model.save(str(folder))
    first = trained.get_vocab_size() + gap
    ids = {name: first + n for n, name in enumerate(SPECIAL)}
    flags = {"lstrip": False, "normalized": False, "rstrip": False, "single_word": False, "special": True}
    settings = {
        "tokenizer_class": "Qwen2Tokenizer",
        "add_prefix_space": False,
        "eos_token": "<|im_end|>",
        "pad_token": "<|endoftext|>",
        "bos_token": None,
        "unk_token": None,
        "added_tokens_decoder": {str(i): {"content": name, **flags} for name, i in ids.items()},
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(settings), encoding="utf-8")
    return ids


def official_config(kind: str, size: str, ids: dict[str, int], assistant: int) -> dict:
    """config.json in the official layout."""
    voices = kind == "custom_voice"
    talker = {
        **TALKER,
        "code_predictor_config": PREDICTOR,
        "spk_id": {"ryan": 90, "eric": 91, "ono_anna": 92} if voices else {},
        "spk_is_dialect": {"ryan": False, "eric": "sichuan_dialect", "ono_anna": False} if voices else {},
    }
    top = {
        "model_type": "qwen3_tts",
        "tokenizer_type": "qwen3_tts_tokenizer_12hz",
        "tts_model_size": size,
        "tts_model_type": kind,
        "assistant_token_id": assistant,
        "talker_config": talker,
        **{f"{n}_token_id": ids[f"<|{n}|>"] for n in ("im_start", "im_end")},
        "tts_pad_token_id": ids["<tts_pad>"],
        "tts_bos_token_id": ids["<tts_text_bos>"],
        "tts_eos_token_id": ids["<tts_text_eod>"],
    }
    return {**top, "speaker_encoder_config": SPEAKER} if kind == "base" else top


def fast_tokenizer(folder: Path):
    """What transformers makes of the folder, as the vendor's processor loads it."""
    from transformers import Qwen2TokenizerFast

    return Qwen2TokenizerFast.from_pretrained(str(folder))


class Oracle:
    """The vendor's model of a kind and ours, on the same files."""

    def __init__(self, folder: Path, kind: str, size: str = "1b7") -> None:
        ids = write_tokenizer(folder)
        self.tokenizer = fast_tokenizer(folder)
        values = official_config(kind, size, ids, self.tokenizer.convert_tokens_to_ids("assistant"))
        self.config = TTSConfig.from_hf(values)
        self.processor = Processor.from_folder(folder, self.config)
        told = {k: v for k, v in values.items() if k != "model_type"}
        torch.manual_seed(0)
        self.model = Qwen3TTSForConditionalGeneration(Qwen3TTSConfig(**told)).eval()
        self.vendor = Qwen3TTSModel(self.model, lambda text, **_: self.tokenizer(text, return_tensors="pt"))
        self.model.talker.generate = self._catch
        self.caught: dict[str, torch.Tensor] = {}

    def _catch(self, **given):
        self.caught = given
        raise _Caught

    def prompt(self, method: str, *args, **options) -> tuple[np.ndarray, np.ndarray]:
        """What a public method of the vendor gives its talker: prompt [T, H], following text [n, H]."""
        try:
            getattr(self.vendor, method)(*args, **options)
        except _Caught:
            return tuple(self.caught[n][0].numpy() for n in ("inputs_embeds", "trailing_text_hidden"))
        raise AssertionError("the vendor did not reach its talker")

    @torch.no_grad()
    def text(self, ids: np.ndarray) -> np.ndarray:
        """Projected text embeddings [T, H]."""
        talker = self.model.talker
        return talker.text_projection(talker.get_text_embeddings()(torch.tensor(ids).long())).numpy()

    @torch.no_grad()
    def summed(self, layout) -> np.ndarray:
        """The sums that a layout asks for, [T, H], with the vendor's tables."""
        talker = self.model.talker
        codec = talker.get_input_embeddings().weight.numpy()
        x = self.text(layout.text)
        x[layout.codec >= 0] += codec[layout.codec[layout.codec >= 0]]
        if layout.speaker is not None:
            x[layout.speaker_at] += layout.speaker
        if layout.reference is not None:
            tables = [codec, *(t.weight.numpy() for t in talker.code_predictor.get_input_embeddings())]
            frames = sum(table[codes] for table, codes in zip(tables, layout.reference, strict=True))
            x[layout.reference_at : layout.reference_at + len(frames)] += frames
        return x

    @staticmethod
    def vendor_ids(tokenizer, text: str) -> list[int]:
        """The text's ids as the vendor cuts them out of its turn."""
        turn = f"<|im_start|>assistant\n{text}<|im_end|>\n<|im_start|>assistant\n"
        return tokenizer.encode(turn, add_special_tokens=False).ids[3:-5]

    def clone_item(self, voice) -> VoiceClonePromptItem:
        """A Voice in the vendor's form."""
        codes = None if voice.codes is None else torch.tensor(voice.codes.T).long()
        return VoiceClonePromptItem(
            codes, torch.tensor(voice.embedding), codes is None, codes is not None, voice.transcript or None
        )


class _Caught(Exception):
    """The talker was reached."""
