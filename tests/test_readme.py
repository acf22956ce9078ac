"""README.md: its marked Python blocks run as they stand, each in a fresh process, and every block is marked."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

README = Path(__file__).parent.parent / "README.md"
# <!-- test --> or <!-- test: weights --> on the line before the block; <!-- no test: reason --> where it cannot run
_BLOCK = re.compile(r"^(?:<!-- (?P<mark>[^\n]*?) -->\n)?```python\n(?P<code>.*?)^```$", re.MULTILINE | re.DOTALL)


def blocks() -> list[tuple[str, str, int]]:
    """(mark, code, line of the block's first line) of every Python block."""
    text = README.read_text("utf-8")
    return [(m["mark"] or "", m["code"], text.count("\n", 0, m.start("code")) + 1) for m in _BLOCK.finditer(text)]


def runnable() -> list[object]:
    return [
        pytest.param(
            code, id=f"line-{line}", marks=[pytest.mark.weights, pytest.mark.slow] if "weights" in mark else []
        )
        for mark, code, line in blocks()
        if mark.startswith("test")
    ]


def test_every_python_block_says_whether_it_runs():
    found = blocks()
    assert len(found) == README.read_text("utf-8").count("```python")
    for mark, _, line in found:
        assert mark in ("test", "test: weights") or mark.startswith("no test: "), f"README.md:{line} has no mark"
    assert any(mark.startswith("test") for mark, _, _ in found)


@pytest.mark.parametrize("code", runnable())
def test_a_readme_example_runs(code: str, tmp_path: Path):
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(README.parent), os.environ.get("PYTHONPATH", "")])},
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"
    assert "Traceback" not in done.stderr


def test_files_the_readme_names_exist():
    root = README.parent
    named = set(re.findall(r"`([\w./-]+\.(?:md|toml|yml|txt)|LICENSE|NOTICE)`", README.read_text("utf-8")))
    assert named
    missing = [n for n in named if not (root / n).exists()]
    assert not missing, f"README.md names {missing}"
