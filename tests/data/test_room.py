"""Memory of large images goes back to the system as soon as it is freed."""

import platform
import subprocess
import sys

import pytest

_SCRIPT = """
import sys, threading
import numpy as np
from pathlib import Path
from sfumato.data.room import PIXELS

def resident():
    status = Path("/proc/self/status").read_text()
    return next(int(line.split()[1]) / 1024 for line in status.splitlines() if line.startswith("VmRSS"))

def blocks():
    for _ in range(3):  # glibc's own threshold rises to the largest block that was freed
        arrays = [np.ones(20 * 2**20, np.uint8) for _ in range(3)]
        keep.append(np.ones(64, np.uint8))  # above the blocks in the heap
        del arrays

def large():
    if sys.argv[1] == "held":
        with PIXELS.holding(2**27):
            blocks()
    else:
        blocks()

keep, before = [], resident()
thread = threading.Thread(target=large)
thread.start()
thread.join()
print(resident() - before)
"""


def _kept(how: str) -> float:
    """MiB that stay resident after a thread freed three blocks of 20 MiB, three times."""
    done = subprocess.run([sys.executable, "-c", _SCRIPT, how], capture_output=True, text=True, check=True)
    return float(done.stdout)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="other C libraries have no mallopt")
def test_blocks_of_large_images_leave_nothing_behind() -> None:
    assert _kept("held") < 8 < _kept("free")
