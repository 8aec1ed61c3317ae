"""The members of a tar file and where their bytes are; nothing is extracted."""

import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from typing import IO

from sfumato.data.containers.index import DamagedContainer

_BLOCK = 512
_LONGEST_NAME = 2**16
_NAMES, _PAX, _PAX_FOR_ALL = b"L", b"x", b"g"
_REGULAR = (b"0", b"\0", b"7")


@dataclass(frozen=True)
class Member:
    """A regular file in a tar file: its bytes are `size` from `start` on."""

    name: str
    start: int
    size: int


def members(file: IO[bytes], length: int) -> Iterator[Member]:
    """The regular files of a tar file of `length` bytes (ustar, GNU and pax), in order.

    Raises DamagedContainer where a header's checksum is wrong, a member reaches beyond the end, or the end mark is
    missing: a file that was cut off between two members is recognised by that.
    """
    at, name, size = 0, None, None
    while True:
        file.seek(at)
        block = file.read(_BLOCK)
        if len(block) < _BLOCK:
            what = "it is empty" if length == 0 else "it ends without the end mark of a tar file, so it was cut off"
            raise DamagedContainer(what)
        try:
            header = tarfile.TarInfo.frombuf(block, "utf-8", "surrogateescape")
        except tarfile.EOFHeaderError:  # type: ignore[attr-defined]
            return
        except tarfile.HeaderError:
            where = "it is not a tar file" if at == 0 else f"what follows byte {at} is not a tar header"
            raise DamagedContainer(where) from None
        own = header.size if size is None or header.type in (_NAMES, _PAX, _PAX_FOR_ALL) else size
        start = at + _BLOCK
        if start + own > length:
            raise DamagedContainer(f"it is cut off within {(name or header.name)!r}")
        at = start + -(-own // _BLOCK) * _BLOCK
        if header.type == _NAMES:
            name = _short(file, own).rstrip(b"\0").decode("utf-8", "surrogateescape")
        elif header.type == _PAX:
            found = _pax(_short(file, own))
            name, size = found.get("path", name), int(found["size"]) if "size" in found else size
        elif header.type != _PAX_FOR_ALL:
            if header.type in _REGULAR:
                yield Member(name or header.name, start, own)
            name, size = None, None


def _short(file: IO[bytes], size: int) -> bytes:
    if size > _LONGEST_NAME:
        raise DamagedContainer(f"a name or its attributes take {size} bytes, more than {_LONGEST_NAME}")
    return file.read(size)


def _pax(data: bytes) -> dict[str, str]:
    """The records "LENGTH KEY=VALUE\\n" of a pax header."""
    found: dict[str, str] = {}
    while data:
        length, _, _ = data.partition(b" ")
        if not length.isdigit() or not 0 < int(length) <= len(data):
            raise DamagedContainer("a pax header in it is malformed")
        key, _, value = data[len(length) + 1 : int(length) - 1].partition(b"=")
        found[key.decode("utf-8", "replace")] = value.decode("utf-8", "surrogateescape")
        data = data[int(length) :]
    if not found.get("size", "0").isdigit():
        raise DamagedContainer("a pax header in it is malformed")
    return found
