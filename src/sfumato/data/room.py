"""Memory that threads share while they read images: the sum of what they hold is bounded, however many there are."""

import ctypes
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from threading import Condition, local


class Room:
    """Bytes of memory that threads share: each waits until what it needs is free, or until nobody holds any."""

    def __init__(self, size: int) -> None:
        self.size, self.taken = size, 0
        self._changed, self._own = Condition(), local()

    @contextmanager
    def holding(self, count: int) -> Iterator[None]:
        """Waits for `count` bytes and holds them within the block; a thread that holds the whole room has them."""
        if getattr(self._own, "all", False):
            yield
            return
        with self._changed:
            self._changed.wait_for(lambda: self.taken == 0 or self.taken + count <= self.size)
            self.taken += count
            _large_blocks_apart(self.taken >= _LARGE)
        self._own.all = count >= self.size
        try:
            yield
        finally:
            self._own.all = False
            with self._changed:
                self.taken -= count
                _large_blocks_apart(self.taken >= _LARGE)
                self._changed.notify_all()


_LARGE = 2**26  # bytes from which on what is freed is worth returning
_MMAP_THRESHOLD, _TRIM_THRESHOLD = -3, -1  # parameters of glibc's mallopt(3)


def _large_blocks_apart(apart: bool) -> None:
    """Has the C library return every block of over 1 MiB to the system as soon as it is freed, or not any more.

    Otherwise glibc keeps up to 64 MiB in each thread's heap, which malloc_trim does not return. Without `apart` its
    thresholds are the ones it chooses by itself once large blocks were freed: 32 and 64 MiB. Does nothing elsewhere.
    """
    with suppress(OSError, AttributeError, TypeError):
        library = ctypes.CDLL(None)
        library.mallopt(_MMAP_THRESHOLD, 2**20 if apart else 2**25)
        library.mallopt(_TRIM_THRESHOLD, 2**20 if apart else 2**26)


PIXELS = Room(2**28)
"""Memory for decoding images: about 256 MiB. Memory that is freed late, and that of C libraries, is extra."""
FILES = Room(2**24)
"""Compressed files that are read before the size of their image is known; always held before `PIXELS`."""


def holding_file(size: int) -> AbstractContextManager[None]:
    """For a compressed file of `size` bytes that is held as a whole: a large one is decoded while no other image is."""
    return PIXELS.holding(PIXELS.size) if size > FILES.size // 2 else FILES.holding(size)
