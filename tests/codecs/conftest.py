"""The tiny codec's folder, the vendor's codec on it, and ours: on torch with and without native kernels, and on MLX."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import tiny_codec_12hz as tiny
from codec_backends import open_backend

from izwi_lab.codecs.qwen3_tts_12hz import model
from izwi_lab.codecs.qwen3_tts_12hz.model import Codec12Hz


@pytest.fixture(scope="session")
def codec_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.write(tmp_path_factory.mktemp("codec") / "speech_tokenizer")


@pytest.fixture(scope="session")
def vendor(codec_folder: Path) -> Any:
    import vendor_qwen_tts  # noqa: F401  puts back what the vendor's package needs of transformers 4
    from qwen_tts import Qwen3TTSTokenizer

    return Qwen3TTSTokenizer.from_pretrained(str(codec_folder))


@pytest.fixture(scope="session", params=["torch", "torch-plain", "mlx"])
def codec(request: pytest.FixtureRequest, codec_folder: Path) -> Codec12Hz:
    name, _, plain = request.param.partition("-")
    with pytest.MonkeyPatch.context() as patch:
        if plain:
            patch.setenv("IZWI_NATIVE", "0")
        return model.load(codec_folder, open_backend(name))
