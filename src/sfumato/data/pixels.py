"""Decoded images kept in one memory-mapped file, so that training does not decode them again at each step."""

import errno
import json
import os
import shutil
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from sfumato.counts import none_of
from sfumato.data.dataset import Progress, UnreadableImage
from sfumato.data.image_dataset import ImageDataset
from sfumato.data.leftovers import draft_path
from sfumato.data.prefetch import Prefetch
from sfumato.data.transforms import Pixels
from sfumato.errors import UserError
from sfumato.locks import exclusive
from sfumato.plain_json import to_json

BUDGET = 2 * 2**30
"""Default limit in bytes of the decoded images of one folder."""

_FORMAT = 2
_CHUNK = 64


@dataclass(frozen=True)
class PixelCache:
    """Prepared images by file: row i of `table` is (offset, h, w), h = 0 for a file that could not be decoded."""

    data: NDArray[np.uint8]
    table: NDArray[np.int64]
    rows: dict[str, int]
    unreadable: dict[str, str]

    def read(self, file: str) -> Pixels:
        """(3, h, w), a read-only view of the mapped file; raises UnreadableImage."""
        offset, h, w = (int(v) for v in self.table[self.rows[file]])
        if h == 0:
            raise UnreadableImage(file, self.unreadable[file])
        return self.data[offset : offset + 3 * h * w].reshape(3, h, w)


def prepared_bytes(folder: ImageDataset) -> int:
    """Bytes of the decoded set, estimated from the images' headers."""
    seen = dict(zip(folder.scan.files, folder.scan.headers, strict=True))
    sizes = (folder.framing_of(name).prepared_size(*g.upright) for name, g in seen.items())
    return sum(3 * h * w for h, w in sizes)


def keep_decoded(
    folder: ImageDataset,
    cache: Path,
    budget: int = BUDGET,
    progress: Progress | None = None,
    workers: int = 2,
    log: Callable[[str], None] | None = None,
) -> ImageDataset:
    """The same folder, reading from cached pixels; the folder unchanged if they exceed the budget or the disk.

    Examples and variants are the same bytes either way. The pixels are in `cache`/pixels-KEY, written now unless a
    valid cache exists: KEY is `ImageDataset.pixel_key`; length, checksum and three newly decoded images are compared.
    One process writes them, others that need the same wait for it. `log` reports that, and why nothing is cached.
    Raises UserError if no image can be decoded, or a file changes meanwhile.
    """
    place = cache / f"pixels-{folder.pixel_key()}"
    kept = _open(place, folder) or _made(place, folder, budget, progress, workers, log or (lambda message: None))
    return folder if kept is None else folder.reading(kept.read, kept.unreadable)


def _made(
    place: Path,
    folder: ImageDataset,
    budget: int,
    progress: Progress | None,
    workers: int,
    log: Callable[[str], None],
) -> PixelCache | None:
    """The cache, written by this process or by another that it waited for; None if there is no space."""
    needed = prepared_bytes(folder)
    message = f"the decoded images would take {needed / 2**20:.0f} MiB, more than"
    if needed > budget:
        log(f"{message} the limit of {budget / 2**20:.0f} MiB: each is decoded whenever it is read")
        return None
    with exclusive(place, wait=True, log=log):
        kept = _open(place, folder)
        if kept is not None:
            return kept
        no_room = f"{message} the free space in {place.parent}: each is decoded whenever it is read"
        if shutil.disk_usage(place.parent).free <= needed + 2**26:
            log(no_room)
            return None
        try:
            _build(place, folder, progress, workers)
        except OSError as error:
            if error.errno not in (errno.ENOSPC, errno.EDQUOT):
                raise
            log(no_room)
            return None
        return _open(place, folder)


def _open(place: Path, folder: ImageDataset) -> PixelCache | None:
    """The cache if it is intact and agrees with the folder, else None."""
    try:
        header = json.loads((place / "header.json").read_text())
        table = np.load(place / "table.npy")
        data = np.memmap(place / "pixels.bin", dtype=np.uint8, mode="r")
    except (OSError, ValueError):
        return None
    files = list(dict.fromkeys(folder.scan.files))
    whole = (header.get("format"), header.get("key"), header.get("bytes")) == (_FORMAT, folder.pixel_key(), data.size)
    if not whole or table.shape != (len(files), 3) or zlib.crc32(data.data) != header["crc32"]:
        return None
    kept = PixelCache(data, table, {name: row for row, name in enumerate(files)}, header["unreadable"])
    return kept if all(_agrees(kept, folder, name) for name in {files[0], files[len(files) // 2], files[-1]}) else None


def _agrees(kept: PixelCache, folder: ImageDataset, file: str) -> bool:
    """Whether a cached image equals the decoded one: another version of the decoder may give other pixels."""
    try:
        fresh: Pixels | None = folder.decode(file)
    except UnreadableImage:
        fresh = None
    if fresh is None or file in kept.unreadable:
        return fresh is None and file in kept.unreadable
    return np.array_equal(kept.read(file), fresh)


def _build(place: Path, folder: ImageDataset, progress: Progress | None, workers: int) -> None:
    """Writes under a temporary name and renames, so that a cache is complete or absent. The lock is held."""
    files = list(dict.fromkeys(folder.scan.files))
    draft = draft_path(place, os.getpid())
    shutil.rmtree(draft, ignore_errors=True)
    draft.mkdir()
    try:
        table = np.zeros((len(files), 3), np.int64)
        unreadable: dict[str, str] = {}
        offset = checksum = 0
        with (draft / "pixels.bin").open("wb") as out:
            for row, pixels in enumerate(_decoded(folder, files, workers)):
                if isinstance(pixels, UnreadableImage):
                    unreadable[files[row]] = pixels.reason
                else:
                    table[row] = (offset, *pixels.shape[1:])
                    out.write(pixels.data)
                    checksum = zlib.crc32(pixels.data, checksum)
                    offset += pixels.size
                if progress is not None:
                    progress(row + 1, len(files))
            out.flush()
            os.fsync(out.fileno())
        np.save(draft / "table.npy", table)
        header = {"format": _FORMAT, "key": folder.pixel_key(), "bytes": offset, "crc32": checksum}
        (draft / "header.json").write_text(to_json(header | {"unreadable": unreadable}))
        if offset == 0:
            raise UserError(
                f"{none_of(len(files), 'image')} in {folder.scan.root} can be read: "
                f"the first, {files[0]}, fails with: {unreadable[files[0]]}"
            )
        _check_unchanged(folder)
        if place.exists():
            shutil.rmtree(place, ignore_errors=True)  # damaged, else it would have been used
        draft.rename(place)
    finally:
        shutil.rmtree(draft, ignore_errors=True)


def _check_unchanged(folder: ImageDataset) -> None:
    """Raises UserError if a file has changed since the key was computed, so that its pixels belong to another key."""
    now = folder.places.hashes(list(folder.hashes), folder.cache)
    other = [file for file, found in zip(folder.hashes, now, strict=True) if found != folder.hashes[file]]
    if other:
        raise UserError(
            f"{len(other)} of {len(now)} images in {folder.scan.root} changed while they were decoded, the first is "
            f"{other[0]}: run the same command again when they no longer change"
        )


def _decoded(folder: ImageDataset, files: Sequence[str], workers: int) -> Iterator[Pixels | UnreadableImage]:
    chunks = [files[i : i + _CHUNK] for i in range(0, len(files), _CHUNK)]

    def one(file: str) -> Pixels | UnreadableImage:
        try:
            return folder.decode(file)
        except UnreadableImage as error:
            return error

    ahead = Prefetch(lambda n: [one(file) for file in chunks[n]], 0, workers, end=len(chunks))
    try:
        for _ in chunks:
            yield from ahead.next()
    finally:
        ahead.close()
