"""Peer: the vendor's package qwen-tts at full size with random weights, on torch. It speaks whole or not at all."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

from izwi_lab.bench.contender import Measurement, Workload
from izwi_lab.bench.machine import cores
from izwi_lab.bench.worker import resident_bytes
from izwi_lab.bench.workloads import digest

_CODEC = {
    "codebook_dim": 512, "codebook_size": 2048, "decoder_dim": 1536, "head_dim": 64, "hidden_size": 512,
    "intermediate_size": 1024, "latent_dim": 1024, "layer_scale_initial_scale": 0.01, "num_attention_heads": 16,
    "num_hidden_layers": 8, "num_key_value_heads": 16, "num_quantizers": 16, "num_semantic_quantizers": 1,
    "rms_norm_eps": 1e-5, "rope_theta": 10000, "semantic_codebook_size": 2048, "sliding_window": 72,
    "upsample_rates": [8, 5, 4, 3], "upsampling_ratios": [2, 2], "vector_quantization_hidden_dimension": 512,
    "max_position_embeddings": 8000, "hidden_act": "silu",
}  # fmt: skip


class QwenTts:
    """model: a CustomVoice variant; device: of torch; dtype: "bfloat16" or "float32"."""

    def __init__(self, *, model: str, device: str = "cpu", dtype: str = "bfloat16") -> None:
        self._name, self._device, self._dtype = model, device, dtype
        self._base_bytes = 0

    def load(self) -> Mapping[str, Any]:
        """Build net and codec of the official config; on transformers 5 the package needs the helper of the tests."""
        import torch
        import vendor_qwen_tts  # noqa: F401 - makes qwen_tts importable
        from qwen_tts.core import Qwen3TTSTokenizerV2Config
        from qwen_tts.core.models import Qwen3TTSConfig, Qwen3TTSForConditionalGeneration
        from qwen_tts.core.tokenizer_12hz.modeling_qwen3_tts_tokenizer_v2 import Qwen3TTSTokenizerV2Decoder

        from izwi_lab import catalog

        self._base_bytes = resident_bytes()
        torch.set_num_threads(cores())
        values = catalog.config(catalog.get(self._name))
        config = Qwen3TTSConfig(**{k: v for k, v in values.items() if k != "model_type"})
        dtype, codec = getattr(torch, self._dtype), Qwen3TTSTokenizerV2Config(decoder_config=_CODEC)
        before = torch.get_default_dtype()
        torch.set_default_dtype(dtype)
        try:
            self._model = Qwen3TTSForConditionalGeneration(config).to(self._device).eval()
            self._codec = Qwen3TTSTokenizerV2Decoder(codec.decoder_config).to(self._device).eval()
        finally:
            torch.set_default_dtype(before)
        return {"threads": cores(), "dtype": self._dtype, "device": self._device}

    def base_bytes(self) -> int:
        """Resident before the weights."""
        return self._base_bytes

    def needed_bytes(self) -> int:
        """The weights."""
        nets = (self._model, self._codec)
        return sum(t.nbytes for net in nets for t in (*net.parameters(), *net.buffers()))

    def run(self, workload: Workload) -> Measurement:
        """Its own generate, then its own decoder in pieces of 300 frames."""
        import torch

        from benchmarks.speaking import text_ids

        config, frames = self._model.config, int(workload.data["frames"])
        talker = config.talker_config
        text = text_ids(int(workload.data["text_tokens"]))
        ids = [config.im_start_token_id, config.assistant_token_id, 198, *text, *[config.im_end_token_id] * 5]
        never = talker.vocab_size - 1  # an id that may not be drawn, so that no end comes early
        torch.manual_seed(0)
        read_at: list[float] = []  # when the talker had read the prompt: its first step

        def note(*_: object) -> None:
            if not read_at:
                read_at.append(self._now_s())

        with torch.inference_mode(), self._model.talker.register_forward_hook(note):
            start_s = time.perf_counter()
            codes, _ = self._model.generate(
                input_ids=[torch.tensor([ids], device=self._device)],
                instruct_ids=[None],
                languages=["english"],
                speakers=[next(iter(talker.spk_id))],
                non_streaming_mode=True,
                max_new_tokens=frames + 1,
                eos_token_id=never,
            )
            decoded_s = self._now_s()
            found = codes[0].clamp(max=2047)
            samples = self._codec.chunked_decode(found.T[None])
            end_s = self._now_s()
        return Measurement(
            total_s=end_s - start_s,
            first_s=end_s - start_s,
            prefill_s=read_at[0] - start_s,
            decode_s=decoded_s - read_at[0],
            audio_s=samples.shape[-1] / 24000,
            prompt_tokens=len(ids),
            tokens=len(found),
            input=digest(text),
            output=digest([int(samples.shape[-1])]),
        )

    def _now_s(self) -> float:
        import torch

        if self._device.startswith("cuda"):
            torch.cuda.synchronize(self._device)
        return time.perf_counter()
