"""Peer: mlx-audio on Qwen3-TTS at full size with random weights."""

from __future__ import annotations

import time
from collections.abc import Mapping
from types import SimpleNamespace
from typing import Any

from izwi_lab.bench.contender import Measurement, Workload
from izwi_lab.bench.worker import resident_bytes
from izwi_lab.bench.workloads import digest

_PACKAGE = "mlx_audio.tts.models.qwen3_tts"


class MlxAudio:
    """model: a CustomVoice variant; device: "cpu" or "gpu"; dtype: of talker and predictor.

    The codec is float32, as its files are. What the variant says is quantised is quantised as the package's converter
    does it.
    """

    def __init__(self, *, model: str, device: str = "gpu", dtype: str = "bfloat16") -> None:
        self._name, self._device, self._dtype = model, device, dtype
        self._base_bytes = 0

    def load(self) -> Mapping[str, Any]:
        """Build net and codec of the official config."""
        import importlib

        import mlx.core as mx
        import mlx.nn as nn

        from izwi_lab import catalog

        mx.set_default_device(mx.Device(mx.DeviceType.gpu if self._device == "gpu" else mx.DeviceType.cpu))
        package, module = importlib.import_module(_PACKAGE), importlib.import_module(f"{_PACKAGE}.qwen3_tts")
        self._base_bytes = resident_bytes()
        values = catalog.config(catalog.get(self._name))
        table = values.pop("quantization", None)
        mx.random.seed(0)
        self._model = module.Model(package.ModelConfig.from_dict(values))
        self._assistant = values["assistant_token_id"]
        self._model.set_dtype(getattr(mx, self._dtype))
        if table:
            chosen = self._model.model_quant_predicate
            nn.quantize(
                self._model,
                group_size=table["group_size"],
                bits=table["bits"],
                class_predicate=lambda path, part: hasattr(part, "to_quantized") and chosen(path, part),
            )
        codec = importlib.import_module(f"{_PACKAGE}.speech_tokenizer").Qwen3TTSSpeechTokenizer
        decoder = module.Qwen3TTSTokenizerDecoderConfig(semantic_codebook_size=2048)
        self._codec = codec(module.Qwen3TTSTokenizerConfig(decoder_config=decoder))
        for part in (self._model, self._codec):
            part.eval()
            mx.eval(part.parameters())
        self._talker = _Noting(self._model.talker)
        self._model.talker = self._talker
        self._model.load_speech_tokenizer(_Noting(self._codec))
        # Out of reach, so that no end comes early: of the last 1024 ids, which are no sounds, only the end may come.
        self._model.config.talker_config.codec_eos_token_id = values["talker_config"]["vocab_size"]
        mx.clear_cache()
        return {"dtype": self._dtype, "device": self._device, "quantisation": table}

    def base_bytes(self) -> int:
        """Resident before the weights."""
        return self._base_bytes

    def needed_bytes(self) -> int:
        """The weights."""
        from mlx.utils import tree_flatten

        parts = (self._talker.inner, self._codec)
        return sum(p.nbytes for part in parts for _, p in tree_flatten(part.parameters()))

    def device_bytes(self) -> int:
        """What MLX holds."""
        import mlx.core as mx

        return int(mx.get_active_memory())

    def run(self, workload: Workload) -> Measurement:
        """Its own generate, which decodes all frames at the end."""
        from benchmarks.speaking import text_ids

        config, frames = self._model.config, int(workload.data["frames"])
        text = text_ids(int(workload.data["text_tokens"]))
        ids = [config.im_start_token_id, self._assistant, 198, *text, *[config.im_end_token_id] * 5]
        self._model.tokenizer = SimpleNamespace(encode=lambda _: ids)
        self._talker.first_s = self._model.speech_tokenizer.first_s = 0.0
        start_s = time.perf_counter()
        (said,) = self._model.generate_custom_voice(
            "", speaker=self._model.supported_speakers[0], language="english", max_tokens=frames
        )
        end_s = time.perf_counter()
        prefilled_s, decoded_s = self._talker.first_s, self._model.speech_tokenizer.first_s
        return Measurement(
            total_s=end_s - start_s,
            first_s=end_s - start_s,
            prefill_s=prefilled_s - start_s,
            decode_s=decoded_s - prefilled_s,
            audio_s=said.samples / said.sample_rate,
            prompt_tokens=self._talker.positions,
            tokens=said.token_count,
            input=digest(text),
            output=digest([said.samples]),
        )


class _Noting:
    """In the place of a module: when its first call was through, or for the codec's `decode`, when it began."""

    def __init__(self, inner: Any) -> None:
        self.inner, self.first_s, self.positions = inner, 0.0, 0

    def __call__(self, x: Any, **options: Any) -> Any:
        """Of the talker: the first reads the prompt."""
        found = self.inner(x, **options)
        if not self.first_s:
            import mlx.core as mx

            mx.eval(found)
            self.first_s, self.positions = time.perf_counter(), x.shape[1]
        return found

    def decode(self, codes: Any) -> Any:
        """Of the codec: all frames are there."""
        self.first_s = time.perf_counter()
        return self.inner.decode(codes)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.inner, name)
