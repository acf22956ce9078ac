"""What an import costs: measured in fresh interpreters, with numpy, torch and mlx absent afterwards."""

from __future__ import annotations

import statistics
import subprocess
import sys

import pytest

LIMIT_S = 0.3
RUNS = 5
HEAVY = ("numpy", "torch", "mlx", "transformers", "huggingface_hub", "onnx", "av", "scipy")
REPORT = """
import sys, time
start = time.perf_counter()
{statement}
taken = time.perf_counter() - start
print(taken, ",".join(m for m in {heavy!r} if m in sys.modules))
"""


def measure(statement: str) -> tuple[float, str]:
    """Seconds and the heavy modules found loaded, in a new interpreter."""
    code = REPORT.format(statement=statement, heavy=HEAVY)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    seconds, _, loaded = done.stdout.strip().partition(" ")
    return float(seconds), loaded


@pytest.mark.parametrize(
    "statement",
    [
        "import izwi_lab",
        "import izwi_lab.catalog; izwi_lab.catalog.get('Kokoro-82M')",
        "from izwi_lab.backends.detect import devices; devices()",
        "from izwi_lab.backends.router import BackendRouter",
        "import izwi_lab.settings, izwi_lab.errors, izwi_lab.cancel",
    ],
)
def test_an_import_is_light_and_loads_nothing_heavy(statement):
    measured = [measure(statement) for _ in range(RUNS)]
    assert {loaded for _, loaded in measured} == {""}
    assert statistics.median(seconds for seconds, _ in measured) < LIMIT_S


def test_the_public_names_are_listed_without_loading_them():
    _, loaded = measure("import izwi_lab; dir(izwi_lab); izwi_lab.__all__; izwi_lab.catalog.variants()")
    assert loaded == ""
