"""Pages of a mapped file are let go, and come back as they were."""

import mmap
import re
import sys
from pathlib import Path

import pytest

from izwi_lab.artifacts import mapped

SIZE = 16 << 20


def resident(name):
    """Bytes of the maps of a file that count as this process's memory."""
    total, ours = 0, False
    with Path("/proc/self/smaps").open() as lines:
        for line in lines:
            if re.match(r"[0-9a-f]+-[0-9a-f]+ ", line):
                ours = line.rstrip().endswith(name)
            elif ours and line.startswith("Rss:"):
                total += int(line.split()[1]) * 1024
    return total


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_pages_are_let_go_and_come_back(tmp_path):
    path = tmp_path / "large.bin"
    path.write_bytes(bytes(range(256)) * (SIZE // 256))
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as pages:
        before = pages[:]
        assert resident(path.name) == SIZE
        mapped.release(pages, 5, SIZE // 2)
        assert resident(path.name) <= SIZE // 2
        mapped.release(pages, 0, SIZE)
        assert resident(path.name) == 0
        assert pages[:] == before


def test_other_memory_is_left_alone():
    mapped.release(bytearray(8), 0, 8)
    mapped.release(None, 0, 8)
