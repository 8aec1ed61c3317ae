"""The C library's heap in a process that answers requests for weeks.

glibc gives every thread that finds the others busy a heap of its own, up to eight for each core, and keeps what is
freed between blocks in use. A service has many short threads: what it uses stays the same, but the heaps grow with
every thousand requests. Elsewhere than with glibc these functions do nothing.
"""

import ctypes
import time
from contextlib import suppress

HEAPS = 2
"""Of all threads: most memory is Python's, or blocks that are so large that they are mapped apart."""
SECONDS = 30.0
_ARENA_MAX = -8  # a parameter of glibc's mallopt(3)


def share_heaps() -> None:
    """Has the threads that begin from now on share `HEAPS` heaps."""
    with suppress(OSError, AttributeError, TypeError):
        ctypes.CDLL(None).mallopt(_ARENA_MAX, HEAPS)


def give_back() -> None:
    """Returns the pages of all heaps in which nothing is in use to the system; some milliseconds."""
    with suppress(OSError, AttributeError, TypeError):
        ctypes.CDLL(None).malloc_trim(0)


class Sometimes:
    """`give_back`, at most every `SECONDS`."""

    def __init__(self) -> None:
        self._last = time.monotonic()

    def __call__(self) -> None:
        """Gives back, unless that was lately."""
        now = time.monotonic()
        if now - self._last >= SECONDS:
            self._last = now
            give_back()
