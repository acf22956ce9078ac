"""notebooks/conftest.py: nbval passes these cells on its own; with the guard they fail."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

NOTEBOOKS = Path(__file__).parents[2] / "notebooks"

CELLS = {
    "good": ("print('fine')", True),
    "wrong magic": ("%timeit -z", False),
    "unknown magic": ("%no_such_magic", False),
    "thread": ("import threading\nt = threading.Thread(target=lambda: 1 / 0)\nt.start()\nt.join()", False),
    "warning": ("import warnings\nwarnings.warn('only a warning')", True),
    "error": ("1 / 0", False),
}


def notebook(sources: dict[str, str]) -> str:
    cells = [
        {"cell_type": "code", "id": f"c{i}", "metadata": {}, "execution_count": None, "outputs": [], "source": source}
        for i, source in enumerate(sources.values())
    ]
    kernel = {"name": "python3", "display_name": "Python 3", "language": "python"}
    return json.dumps({"cells": cells, "metadata": {"kernelspec": kernel}, "nbformat": 4, "nbformat_minor": 5})


@pytest.mark.slow
def test_the_guard_fails_cells_that_nbval_passes(tmp_path: Path):
    shutil.copy(NOTEBOOKS / "conftest.py", tmp_path)
    (tmp_path / "all.ipynb").write_text(notebook({name: source for name, (source, _) in CELLS.items()}))
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "--nbval-lax", "--nbval-current-env", "-q", "-rA", "-p", "no:cacheprovider",
         "--nbval-cell-timeout=60", "--rootdir", str(tmp_path), str(tmp_path)],
        capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip
    verdicts = {
        i: line.split()[0]
        for line in done.stdout.splitlines()
        for i in range(len(CELLS))
        if line.startswith(("PASSED", "FAILED")) and f"::Cell {i}" in line
    }
    assert verdicts == {i: "PASSED" if ok else "FAILED" for i, (_, ok) in enumerate(CELLS.values())}, done.stdout


def test_notebooks_are_stripped_and_have_text_before_each_cell():
    paths = sorted(NOTEBOOKS.glob("*.ipynb"))
    assert paths
    for path in paths:
        cells = json.loads(path.read_text("utf-8"))["cells"]
        for before, cell in zip([None, *cells], cells, strict=False):
            if cell["cell_type"] != "code":
                continue
            where = f"{path.name} {cell['id']}"
            assert cell["outputs"] == [], where
            assert cell["execution_count"] is None, where
            assert before is not None, where
            assert before["cell_type"] == "markdown", where
            assert len("".join(cell["source"]).splitlines()) <= 16, where
