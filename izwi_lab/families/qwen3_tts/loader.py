"""Loading of Qwen3-TTS: talker, code predictor, speech tokenizer and, in base models, the speaker encoder."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from izwi_lab.artifacts.checkpoint import Checkpoint, open_checkpoint
from izwi_lab.backends import host
from izwi_lab.backends.base import Backend, BackendPlan, Net
from izwi_lab.catalog.variant import Layout, ModelVariant
from izwi_lab.codecs.qwen3_tts_12hz import model as codec_model
from izwi_lab.codecs.qwen3_tts_12hz.config import CodecConfig
from izwi_lab.errors import CheckpointError, InvalidInputError
from izwi_lab.families.qwen3_tts import asking, weights
from izwi_lab.families.qwen3_tts.config import TTSConfig
from izwi_lab.families.qwen3_tts.generation import Generation
from izwi_lab.families.qwen3_tts.processor import Processor
from izwi_lab.families.qwen3_tts.voice import FRAMES_HZ
from izwi_lab.families.shared.weights import Renamed

if TYPE_CHECKING:
    from izwi_lab.families.qwen3_tts.model import Qwen3TTS

SPEAKER = f"{weights.PACKAGE}.nets.speaker"
CODEC_FOLDER = "speech_tokenizer"
_LAYOUTS = (Layout.HF, Layout.MLX)
_MOST_BYTES = 1 << 20  # of a configuration


def load(
    variant: ModelVariant,
    folder: Path | None,
    plan: BackendPlan,
    backend: Backend,
    *,
    layout: str,
    load_format: str = "auto",
) -> Qwen3TTS:
    """Load Qwen3-TTS from `folder` in the layout "hf" or "mlx"; `load_format="dummy"` needs no folder.

    Raises:
        CheckpointError: files missing, damaged, or of another kind of model.
        InvalidInputError: no folder was given for real weights.
    """
    from izwi_lab.families.qwen3_tts.model import Qwen3TTS

    if load_format == "dummy":
        return _dummy(variant, plan, backend)
    if folder is None:
        raise InvalidInputError(f"{variant.id} needs its files to load.", hint="load_format='dummy' needs none.")
    if layout not in _LAYOUTS:
        raise CheckpointError(f"Qwen3-TTS cannot be read from the layout {layout!r}.", hint="Expected hf or mlx.")
    checkpoint = open_checkpoint(folder, layout)
    try:
        config = TTSConfig.from_hf(checkpoint.config)
        processor = Processor.from_folder(folder, config)
        host.return_freed_memory()  # of building a tokenizer: beside the weights it would stay until the end
        given = Renamed(checkpoint, weights.net_rules(config))
        net = backend.net(weights.PACKAGE, "TTSNet", config, given, keep_stored=weights.KEEP_STORED)
        speaker = _speaker(config, checkpoint, backend, layout)
    finally:
        checkpoint.close()
    codec = codec_model.load(folder / CODEC_FOLDER, backend)
    _check_codec(config, codec.config)
    generation = Generation.from_hf(_json(folder / "generation_config.json"))
    return Qwen3TTS(
        variant, plan, backend, net, config, codec, processor=processor, speaker=speaker, generation=generation
    )


def voices(folder: Path) -> tuple[str, ...]:
    """The preset voices of a checkpoint's folder, by its config.json alone. Raises CheckpointError."""
    return asking.voices(TTSConfig.from_hf(_json(folder / "config.json")))


def _check_codec(config: TTSConfig, codec: CodecConfig) -> None:
    """Raise where the codes that the talker and its predictor draw are not those of the speech tokenizer beside it."""
    rate_hz = codec.rate_hz / codec.frame_samples
    for what, drawn, held in (
        ("codebooks", config.codebooks, codec.codebooks),
        ("codes of a codebook", config.predictor_vocab, codec.decoder.codebook_size),
        ("frames a second", FRAMES_HZ, rate_hz),
    ):
        if drawn != held:
            raise CheckpointError(
                f"The talker of config.json has {drawn:g} {what}; the codec in {CODEC_FOLDER} has {held:g}.",
                hint="They belong to different models: fetch the model again.",
            )


def _speaker(config: TTSConfig, checkpoint: Checkpoint, backend: Backend, layout: str) -> Net | None:
    """The speaker encoder, in float32: a voice is made once and heard often."""
    if config.speaker is None:
        return None
    # MLX's converter marks the files it writes, so that unquantised ones are known by that.
    mlx = Layout.MLX in (layout, getattr(checkpoint, "metadata", {}).get("format"))
    given = Renamed(checkpoint, weights.speaker_rules(mlx=mlx))
    return backend.net(SPEAKER, "SpeakerEncoder", config.speaker, given, keep_float32=("*",))


def _dummy(variant: ModelVariant, plan: BackendPlan, backend: Backend) -> Qwen3TTS:
    from izwi_lab import catalog
    from izwi_lab.families.qwen3_tts.model import Qwen3TTS

    values = catalog.config(variant)
    config = TTSConfig.from_hf(values)
    net = backend.net(weights.PACKAGE, "TTSNet", config, weights.dummy_weights(config, values.get("quantization")))
    codec = codec_model.load(None, backend, load_format="dummy")
    speaker = None
    if config.speaker is not None:
        speaker = backend.net(SPEAKER, "SpeakerEncoder", config.speaker, None, keep_float32=("*",))
    return Qwen3TTS(variant, plan, backend, net, config, codec, speaker=speaker)


def _json(path: Path) -> Mapping[str, Any]:
    """What a small JSON file says; nothing where there is none."""
    if not path.is_file():
        return {}
    try:
        if path.stat().st_size > _MOST_BYTES:
            raise CheckpointError(f"{path} is larger than {_MOST_BYTES} bytes.", hint="Fetch the model again.")
        values = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(f"Cannot read {path}: {error}.", hint="Fetch the model again.") from None
    if not isinstance(values, dict):
        raise CheckpointError(f"{path} is not a JSON object.", hint="Fetch the model again.")
    return values
