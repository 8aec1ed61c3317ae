"""Images inside other files: members of tar files, cells of tables, entries of databases."""

import io
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import IO, TypeAlias


@dataclass(frozen=True)
class Packed:
    """Bytes within another file that are read like a file: `place` names them in messages, `opened` opens them."""

    place: str
    size: int
    opened: Callable[[], IO[bytes]] = field(repr=False, compare=False)

    def __str__(self) -> str:
        return self.place

    @property
    def name(self) -> str:
        return PurePosixPath(self.place).name

    @property
    def suffix(self) -> str:
        return PurePosixPath(self.place).suffix

    def open(self, mode: str = "rb", buffering: int = -1) -> IO[bytes]:
        """As `Path.open` in binary mode."""
        return self.opened()


ImageFile: TypeAlias = Path | Packed
"""A file of its own, or the bytes of one inside another."""


class Window(io.RawIOBase):
    """The `size` bytes from `start` on of another file, as a file; closing it closes the other."""

    def __init__(self, file: IO[bytes], start: int, size: int) -> None:
        self._file, self._start, self._size, self._at = file, start, size, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._at

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        base = {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: self._size}[whence]
        if base + offset < 0:
            raise ValueError(f"position {base + offset} is before the start")
        self._at = base + offset
        return self._at

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]
        count = min(len(buffer), max(0, self._size - self._at))
        self._file.seek(self._start + self._at)
        part = self._file.read(count)
        buffer[: len(part)] = part
        self._at += len(part)
        return len(part)

    def close(self) -> None:
        if not self.closed:
            self._file.close()
        super().close()


def part_of(path: Path, start: int, size: int) -> IO[bytes]:
    """The `size` bytes from `start` on of the file at `path`."""
    return io.BufferedReader(Window(path.open("rb", buffering=0), start, size))
