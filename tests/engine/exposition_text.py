"""A reader of Prometheus' text format that knows its grammar and nothing else."""

from __future__ import annotations

import re

_LINE = re.compile(r'([a-zA-Z_:][\w:]*)(?:\{((?:\w+="(?:[^"\\\n]|\\[\\n"])*",?)*)\})? (\S+)')
_LABEL = re.compile(r'(\w+)="((?:[^"\\\n]|\\[\\n"])*)"')


def parsed(text: str) -> dict[tuple, float]:
    """(name, labels) -> value, for all samples."""
    found = {}
    assert text.endswith("\n")
    for line in text.splitlines():
        if line.startswith("# "):
            assert re.fullmatch(r"# (HELP|TYPE) [a-zA-Z_:][\w:]* .*", line)
            continue
        match = _LINE.fullmatch(line)
        assert match, f"no sample: {line!r}"
        labels = tuple((k, re.sub(r"\\(.)", _plain, v)) for k, v in _LABEL.findall(match[2] or ""))
        assert (match[1], labels) not in found, "a series twice"
        found[match[1], labels] = float(match[3].replace("Inf", "inf"))
    return found


def _plain(match):
    return "\n" if match[1] == "n" else match[1]
