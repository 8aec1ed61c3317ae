"""Threads that come and go share few heaps, and what they freed goes back to the system."""

import platform
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="other C libraries have other heaps")

HEAPS = """
import ctypes, sys, threading
from pathlib import Path
from sfumato.service.heap import share_heaps

if sys.argv[2] == "shared":
    share_heaps()
library, barrier = ctypes.CDLL(None), threading.Barrier(12)
library.malloc.restype = ctypes.c_void_p
def hold():
    for _ in range(100):
        library.malloc(1024)
    barrier.wait()
threads = [threading.Thread(target=hold) for _ in range(12)]
for thread in threads: thread.start()
for thread in threads: thread.join()
library.fopen.restype = ctypes.c_void_p
file = ctypes.c_void_p(library.fopen(sys.argv[1].encode(), b"w"))
library.malloc_info(0, file)
library.fclose(file)
print(Path(sys.argv[1]).read_text().count("<heap nr="))
"""

GIVEN_BACK = """
import ctypes
from pathlib import Path
from sfumato.service.heap import give_back

def resident():
    status = Path("/proc/self/status").read_text()
    return next(int(line.split()[1]) / 1024 for line in status.splitlines() if line.startswith("VmRSS"))

library = ctypes.CDLL(None)
library.malloc.restype, library.free.argtypes = ctypes.c_void_p, [ctypes.c_void_p]
blocks = [library.malloc(60000) for _ in range(1000)]
for block in blocks: ctypes.memset(block, 1, 60000)
for block in blocks[:-1]: library.free(block)
before = resident()
give_back()
print(before - resident())
"""


def printed(script: str, *words: str) -> float:
    done = subprocess.run([sys.executable, "-c", script, *words], capture_output=True, text=True, check=True)
    return float(done.stdout)


def test_threads_share_two_heaps(tmp_path: Path) -> None:
    assert printed(HEAPS, str(tmp_path / "shared"), "shared") <= 2 < printed(HEAPS, str(tmp_path / "own"), "own")


def test_what_is_freed_below_a_block_in_use_is_given_back() -> None:
    assert printed(GIVEN_BACK) > 40  # MiB, of 57 that were freed
