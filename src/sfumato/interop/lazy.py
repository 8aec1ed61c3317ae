"""Lazily loaded tensors of a file: name, type and shape are known, the bytes are read on demand.

A checkpoint of 7 GB is therefore listed without reading it and converted one tensor at a time; where the file
allows it the bytes are memory-mapped, so the operating system's cache is the only copy.
"""

import math
import mmap
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from sfumato.errors import UserError
from sfumato.foreign import check_regular, short

MAX_DIMS = 64  # torch's own limit for most operations
SMALL = 16 << 20


LARGEST = 1 << 63
"""Exclusive bound of offsets, strides and numbers of elements: torch counts in 64 bits."""


def is_shape(shape: tuple[Any, ...]) -> bool:
    """Whether torch supports a tensor of this shape, including empty ones."""
    if len(shape) > MAX_DIMS or any(type(n) is not int or not 0 <= n < LARGEST for n in shape):
        return False
    return 0 not in shape or math.prod(max(n, 1) for n in shape) < LARGEST


class LazyTensor(Protocol):
    """The interface of every reader: type and shape at no cost, the values on demand."""

    @property
    def dtype(self) -> torch.dtype: ...
    @property
    def shape(self) -> tuple[int, ...]: ...
    def load(self) -> Tensor:
        """The values as a contiguous tensor; raises UserError if the file does not contain them."""
        ...


class MappedFile:
    """A file in memory by private mapping: pages are read when touched, writes never reach the file."""

    def __init__(self, path: Path) -> None:
        self.path = path
        check_regular(path)
        size = path.stat().st_size
        if size == 0:
            raise UserError(f"{path} is empty: probably an interrupted download; fetch it again")
        with path.open("rb") as file:
            self.map = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)
        self.size = size

    def region(self, start: int, nbytes: int) -> Tensor:
        """`nbytes` bytes from `start` as a uint8 tensor that shares the mapping; the caller must check the range."""
        return torch.frombuffer(self.map, dtype=torch.uint8, count=nbytes, offset=start)


@dataclass(frozen=True, eq=False)
class Storage:
    """A flat run of bytes in a file. `fetch` returns them as a uint8 tensor of exactly `nbytes` elements."""

    key: str
    dtype: torch.dtype
    nbytes: int
    fetch: Callable[[], Tensor]


@dataclass(frozen=True, eq=False)
class StoredTensor:
    """A view of a storage by offset, shape and stride (in elements), checked against the storage's bounds on
    creation."""

    storage: Storage
    dtype: torch.dtype
    offset: int
    shape: tuple[int, ...]
    stride: tuple[int, ...]

    @property
    def nbytes(self) -> int:
        return math.prod(self.shape) * self.dtype.itemsize

    def load(self) -> Tensor:
        """Contiguous values; a plain whole view shares the mapped file, everything else is a copy."""
        if self.nbytes == 0:
            return torch.empty(self.shape, dtype=self.dtype)
        raw = self.storage.fetch()
        if raw.data_ptr() % self.dtype.itemsize:
            start, stop = self._span()
            raw = raw[start:stop].clone()
            return raw.view(self.dtype).as_strided(self.shape, self.stride, 0).contiguous()
        whole = raw[: raw.numel() // self.dtype.itemsize * self.dtype.itemsize].view(self.dtype)
        return whole.as_strided(self.shape, self.stride, whole.storage_offset() + self.offset).contiguous()

    def _span(self) -> tuple[int, int]:
        """First and past-the-last byte of the storage that this view touches."""
        last = self.offset + sum((size - 1) * step for size, step in zip(self.shape, self.stride, strict=True))
        return self.offset * self.dtype.itemsize, (last + 1) * self.dtype.itemsize


def view(
    storage: Storage, dtype: torch.dtype, offset: int, shape: tuple[int, ...], stride: tuple[int, ...]
) -> StoredTensor:
    """A checked view; raises UserError where it exceeds its storage or expands elements to something much larger."""
    numbers = (offset, *shape, *stride)
    if (
        len(shape) != len(stride)
        or not is_shape(shape)
        or any(type(n) is not int or not 0 <= n < LARGEST for n in numbers)
    ):
        raise UserError(
            f"storage {storage.key}: shape {short(shape)} with strides {short(stride)} at {short(offset)} is no "
            "tensor; the file is damaged"
        )
    elements = math.prod(shape)
    if elements:
        last = offset + sum((size - 1) * step for size, step in zip(shape, stride, strict=True))
        if (last + 1) * dtype.itemsize > storage.nbytes:
            raise UserError(
                f"storage {storage.key} holds {storage.nbytes} bytes, but a tensor of shape {shape} needs "
                f"{(last + 1) * dtype.itemsize}; the file is damaged or half downloaded"
            )
    if elements * dtype.itemsize > max(storage.nbytes, SMALL):
        raise UserError(
            f"storage {storage.key} holds {storage.nbytes} bytes, but is repeated into {shape}; refusing to expand it"
        )
    return StoredTensor(storage, dtype, offset, shape, stride)
