"""Check that this machine's memory can hold the requested images, before anything is opened."""

import os

from sfumato.errors import UserError

COPIES = 3
"""Copies of a batch's pixels in memory: decoded, clipped and as bytes of a file."""


def check_memory(size: tuple[int, int], batch: int) -> None:
    """Raises UserError where a batch of images (H, W) alone, without any network, exceeds the machine's memory."""
    each = 3 * 4 * COPIES * size[0] * size[1]
    available = machine_memory()
    if each > available:
        raise UserError(
            f"size {size[0]}x{size[1]} (height x width) needs at least {_gib(each)} for one image, and this machine "
            f"has {_gib(available)}: give a smaller size"
        )
    if each * batch > available:
        raise UserError(
            f"batch {batch:,} of {size[0]}x{size[1]} (height x width) needs at least {_gib(each * batch)}, and this "
            f"machine has {_gib(available)}: give a batch of at most {max(1, available // each):,}"
        )


def machine_memory() -> int:
    """Bytes of the machine's memory."""
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def _gib(size: int) -> str:
    return f"{size / 2**30:,.1f} GiB"
