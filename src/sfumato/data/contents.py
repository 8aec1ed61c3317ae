"""Hashes of whole files, which identify content independently of names and times.

Hashes are cached, so that a large folder is read once. A cached hash is used for a file whose device, inode, size,
times of modification and of change (ctime, which no program can set) are the same. A file that changed as recently as
it was hashed is read again, because a second change within the clock's tick would not be visible.
"""

import os
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from hashlib import blake2b, file_digest
from pathlib import Path
from struct import Struct

from sfumato.checkpoint import replacing
from sfumato.data.dataset import Progress
from sfumato.data.packed import ImageFile
from sfumato.errors import UserError
from sfumato.locks import exclusive

STORE = "contents.bin"
"""The file of cached hashes: a title line, then 56 bytes a file."""

_SMALL = 2**20
"""Bytes up to which a file is read at once: `file_digest` allocates a buffer of 256 KiB for each."""

_CHUNK = 64  # files a task: handing one to a thread costs as much as reading a small file
_THREADS = 8  # hashing releases the interpreter's lock, and waits for the disk
_TITLE = b"sfumato contents 1\n"
_STAT = Struct("<5Q")
_DIGEST = 16
_MOST = 4_000_000
"""Most hashes that are kept, the newest ones: 224 MB."""

_SETTLED = 2 * 10**9
"""Nanoseconds: the coarsest clock of a file system in use (FAT) ticks every two seconds."""


def file_hash(path: Path) -> bytes:
    """16 bytes (blake2b) of the whole content. Raises OSError."""
    with path.open("rb", buffering=0) as stream:
        if os.fstat(stream.fileno()).st_size <= _SMALL:
            return blake2b(stream.read(), digest_size=_DIGEST).digest()
        return file_digest(stream, lambda: blake2b(digest_size=_DIGEST)).digest()


def file_hashes(paths: Sequence[Path], cache: Path | None = None, progress: Progress | None = None) -> list[bytes]:
    """`file_hash` of every file, in order; empty bytes for one that cannot be read.

    With `cache` (a folder), valid hashes in it are used, and new ones are added.
    """
    kept = {} if cache is None else _read(cache / STORE)
    fresh: dict[bytes, bytes] = {}

    def one(path: Path) -> bytes:
        try:
            begun = time.time_ns()
            before = path.stat()
            found = kept.get(signature_of(before))
            if found is None:
                found = file_hash(path)
                if _settled(before, begun) and signature_of(path.stat()) == signature_of(before):
                    fresh[signature_of(before)] = found
        except OSError:
            return b""
        return found

    hashes: list[bytes] = []
    chunks = [paths[i : i + _CHUNK] for i in range(0, len(paths), _CHUNK)]
    with ThreadPoolExecutor(_THREADS) as pool:
        for found in pool.map(lambda chunk: [one(path) for path in chunk], chunks):
            hashes += found
            if progress is not None:
                progress(len(hashes), len(paths))
    if fresh and cache is not None:
        with suppress(UserError):  # only a cache: without space or permission the files are read again
            _keep(cache / STORE, fresh)
    return hashes


def content_hashes(
    files: Sequence[ImageFile], cache: Path | None = None, progress: Progress | None = None
) -> list[bytes]:
    """As `file_hashes`, also for bytes inside other files, which are read each time."""
    own = [file for file in files if isinstance(file, Path)]
    found = iter(file_hashes(own, cache, progress))
    return [
        next(found) if isinstance(file, Path) else blake2b(file.open().read(), digest_size=_DIGEST).digest()
        for file in files
    ]


def signature_of(stat: os.stat_result) -> bytes:
    """Names a file as it is: device, inode, size, times of modification and of change."""
    values = (stat.st_dev, stat.st_ino, stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns)
    return _STAT.pack(*(value % 2**64 for value in values))


def _settled(stat: os.stat_result, now: int) -> bool:
    return max(stat.st_mtime_ns, stat.st_ctime_ns) + _SETTLED < now


def is_settled(path: Path) -> bool:
    """Whether the file last changed so long ago that any further change would show in its times. Raises OSError."""
    return _settled(path.stat(), time.time_ns())


def _read(store: Path) -> dict[bytes, bytes]:
    """The cached hashes by the file's signature; none if the store is missing, damaged or of another version."""
    try:
        data = store.read_bytes()
    except OSError:
        return {}
    width = _STAT.size + _DIGEST
    if not data.startswith(_TITLE) or (len(data) - len(_TITLE)) % width:
        return {}
    rows = (data[at : at + width] for at in range(len(_TITLE), len(data), width))
    return {row[: _STAT.size]: row[_STAT.size :] for row in rows}


def _keep(store: Path, fresh: dict[bytes, bytes]) -> None:
    with exclusive(store, wait=True), replacing(store) as draft:
        rows = list((_read(store) | fresh).items())[-_MOST:]
        draft.write_bytes(_TITLE + b"".join(signature + found for signature, found in rows))
