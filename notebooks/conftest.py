"""nbval takes only a raised exception for a failure; these lines on a cell's stderr also mean that it went wrong."""

from __future__ import annotations

import re
from collections.abc import Generator
from typing import Any

import pytest

BAD = re.compile(
    r"^(UsageError:|Exception in thread |Exception ignored |Task exception was never retrieved|ERROR:asyncio)",
    re.MULTILINE,
)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item: pytest.Item) -> Generator[None, Any, Any]:
    """Fail a cell whose stderr shows a wrong magic, or an exception in a thread or a task.

    A cell tagged `raises-exception` or `allow-stderr` is left alone.
    """
    result = yield
    if type(item).__name__ != "IPyNbCell" or item.options["check_exception"]:  # type: ignore[attr-defined]
        return result
    if "allow-stderr" in item.cell.metadata.get("tags", []):  # type: ignore[attr-defined]
        return result
    for output in item.test_outputs or ():  # type: ignore[attr-defined]
        is_stderr = output.get("output_type") == "stream" and output.get("name") == "stderr"
        if is_stderr and (found := BAD.search(output["text"])):
            item.raise_cell_error(f"stderr: {output['text'][found.start() :].strip()[:500]}")  # type: ignore[attr-defined]
    return result
