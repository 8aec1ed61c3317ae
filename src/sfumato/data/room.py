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
        self._own.all = count >= self.size
        if count >= _LARGE:
            _give_back()  # what earlier images left: the last one's result was freed after its block
        try:
            yield
        finally:
            self._own.all = False
            with self._changed:
                self.taken -= count
                self._changed.notify_all()


_LARGE = 2**26  # bytes from which on an image leaves holes worth giving back


def _give_back() -> None:
    """Returns freed memory to the system, where the C library can: Pillow's blocks of 16 MiB stay with it otherwise."""
    with suppress(OSError, AttributeError, TypeError):
        ctypes.CDLL(None).malloc_trim(0)


PIXELS = Room(2**28)
"""What is taken to decode images: about 256 MiB. What is freed late, and by C libraries, comes on top."""
FILES = Room(2**24)
"""Compressed files that are read before the size of their image is known; always held before `PIXELS`."""


def holding_file(size: int) -> AbstractContextManager[None]:
    """For a compressed file of `size` bytes that is held as a whole: a large one is decoded while no other image is."""
    return PIXELS.holding(PIXELS.size) if size > FILES.size // 2 else FILES.holding(size)
