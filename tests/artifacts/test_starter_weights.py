"""The real starter packs, through the real clients: every one that the test suite uses is what the catalog pins."""

from __future__ import annotations

import pytest
from starter_weights import fetched

from izwi_lab import artifacts, catalog
from izwi_lab.artifacts.manifest import read_manifest
from izwi_lab.catalog.variant import Layout

pytestmark = [pytest.mark.weights, pytest.mark.slow]


@pytest.mark.parametrize(
    ("name", "layout"),
    [
        ("Silero-VAD-v6", Layout.SILERO_ONNX),
        ("SmolLM2-135M-Instruct", Layout.GGUF),
        ("Whisper-tiny.en", Layout.CTRANSLATE2),
        ("Kokoro-82M", Layout.KOKORO_ONNX),
    ],
)
def test_a_starter_pack_is_what_the_catalog_pins(name: str, layout: Layout) -> None:
    variant = catalog.get(name)
    model = fetched(name, source="starter")
    assert model.layout is layout and artifacts.locate(variant, source="starter") == model
    assert artifacts.detect_layout(model.folder) is layout
    manifest = read_manifest(model.folder)
    assert manifest is not None and manifest.files and variant.starter is not None
    packs = (variant.starter, variant.starter.alternative)
    assert manifest.files.keys() in [{f.name for f in p.files} for p in packs if p is not None]
    pinned = {f.name: f.sha256 for p in packs if p is not None for f in p.files}
    assert {n: f.sha256 for n, f in manifest.files.items()}.items() <= pinned.items()
