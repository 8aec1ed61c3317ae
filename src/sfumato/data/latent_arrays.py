"""The arrays of a latent cache: moments and fields that are tensors, in files of one shape and of bounded size."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.lib.format import open_memmap
from numpy.typing import NDArray

from sfumato.data.latent_header import LatentGroup, LatentHeader
from sfumato.errors import UserError

Mode = Literal["r", "r+"]


@dataclass(frozen=True)
class ArrayFile:
    """A file NAME.npy with its dtype and shape."""

    name: str
    dtype: np.dtype[Any]
    shape: tuple[int, ...]


@dataclass(frozen=True)
class _Part:
    """The rows of a group from `start` on that are in one set of files; `label` ends the names of these."""

    group: int
    label: str
    start: int
    count: int


def _parts(header: LatentHeader) -> list[_Part]:
    parts = []
    for number, group in enumerate(header.all_groups):
        most = header.rows_per_file or max(1, group.count)
        size = f"-{group.size[0]}x{group.size[1]}" if header.groups else ""
        for piece, start in enumerate(range(0, group.count, most)):
            label = f"{size}-{piece:05d}" if header.rows_per_file else size
            parts.append(_Part(number, label, start, min(most, group.count - start)))
    return parts


def _part_files(header: LatentHeader, part: _Part) -> dict[str, ArrayFile]:
    """The files of a part by what they hold: `moments`, and the names of fields."""
    group = header.all_groups[part.group]
    moments = (header.variants, part.count, *group.shape)
    files = {"moments": ArrayFile(f"moments{part.label}", np.dtype(header.dtype), moments)}
    for name, field in group.tensors.items():
        shape = (part.count, *field.shape)
        files[f"field-{name}"] = ArrayFile(f"field-{name}{part.label}", np.dtype(field.dtype), shape)
    return files


def array_files(header: LatentHeader) -> list[ArrayFile]:
    """All arrays of a cache."""
    files = [file for part in _parts(header) for file in _part_files(header, part).values()]
    files.append(state_file(header))
    if header.groups:
        files.append(ArrayFile("group", np.dtype(np.uint16), (header.count,)))
        files.append(ArrayFile("place", np.dtype(np.int64), (header.count,)))
    return files


def state_file(header: LatentHeader) -> ArrayFile:
    """The state of every row and variant."""
    return ArrayFile("state", np.dtype(np.uint8), (header.variants, header.count))


def write_places(folder: Path, groups: NDArray[np.int64], header: LatentHeader) -> None:
    """Fills the arrays that locate each row; groups (N,) are numbers of the header's groups."""
    mapped = {name: open_memmap(folder / f"{name}.npy", mode="r+") for name in ("group", "place")}
    mapped["group"][:] = groups
    for number in range(len(header.groups)):
        rows = np.flatnonzero(groups == number)
        mapped["place"][rows] = np.arange(len(rows))
    for array in mapped.values():
        array.flush()


class LatentArrays:
    """Moments and tensors by row, mapped into memory: a cache may be larger than that."""

    def __init__(self, folder: Path, header: LatentHeader, mode: Mode) -> None:
        """Raises UserError for a file that is damaged."""
        self._header = header
        self._parts = _parts(header)
        self._files = [
            {what: mapped(folder, file, mode) for what, file in _part_files(header, part).items()}
            for part in self._parts
        ]
        self._first = [
            next(i for i, part in enumerate(self._parts) if part.group == n) if group.count else -1
            for n, group in enumerate(header.all_groups)
        ]
        self._group: NDArray[Any] | None = None
        if header.groups:
            N = (header.count,)
            self._group = mapped(folder, ArrayFile("group", np.dtype(np.uint16), N), "r")
            self._place = mapped(folder, ArrayFile("place", np.dtype(np.int64), N), "r")

    def group_of(self, row: int) -> LatentGroup:
        """The group of a row."""
        return self._header.all_groups[self._number(row)]

    @property
    def groups(self) -> NDArray[np.int64] | None:
        """The number of each row's group; None if there is one."""
        return None if self._group is None else self._group.astype(np.int64)

    def moments(self, variant: int, row: int) -> NDArray[Any]:
        """A copy of a row's moments (M, h, w)."""
        files, place = self._found(row)
        return np.array(files["moments"][variant, place])

    def tensors(self, row: int) -> dict[str, NDArray[Any]]:
        """Copies of a row's fields that are tensors."""
        files, place = self._found(row)
        return {
            what.removeprefix("field-"): np.array(array[place]) for what, array in files.items() if what != "moments"
        }

    def write_moments(self, variant: int, rows: NDArray[np.int64], values: NDArray[Any]) -> None:
        """Values (B, M, h, w) of rows of one group."""
        for number, row in enumerate(rows.tolist()):
            files, place = self._found(row)
            files["moments"][variant, place] = values[number]

    def write_tensor(self, name: str, rows: NDArray[np.int64], values: NDArray[Any]) -> None:
        """Values (B, ...) of a field, for rows of one group."""
        for number, row in enumerate(rows.tolist()):
            files, place = self._found(row)
            files[f"field-{name}"][place] = values[number]

    def parts(self, state: NDArray[np.uint8]) -> Iterator[tuple[NDArray[Any], NDArray[np.uint8]]]:
        """The moments (V, n, M, h, w) of each part, and the state (V, n) of its rows."""
        for part, files in zip(self._parts, self._files, strict=True):
            end = part.start + part.count
            if self._group is None:
                yield files["moments"], state[:, part.start : end]
            else:
                yield files["moments"], state[:, np.flatnonzero(self._group == part.group)[part.start : end]]

    def flush(self) -> None:
        """Writes changed pages to the disk."""
        for files in self._files:
            for array in files.values():
                array.flush()  # type: ignore[attr-defined]

    def _number(self, row: int) -> int:
        return 0 if self._group is None else int(self._group[row])

    def _found(self, row: int) -> tuple[dict[str, NDArray[Any]], int]:
        """The files that hold a row, and its place in them."""
        place = row if self._group is None else int(self._place[row])
        most = self._header.rows_per_file
        piece, place = (0, place) if most is None else divmod(place, most)
        return self._files[self._first[self._number(row)] + piece], place


def mapped(folder: Path, file: ArrayFile, mode: Mode) -> NDArray[Any]:
    """An array of the cache; UserError if it is damaged."""
    where = f"latent cache {folder} is damaged"
    try:
        array: NDArray[Any] = np.load(folder / f"{file.name}.npy", mmap_mode=mode)
    except (OSError, ValueError):
        raise UserError(f"{where} ({file.name}.npy cannot be read): encode the data again") from None
    if array.dtype != file.dtype or array.shape != file.shape:
        raise UserError(f"{where} ({file.name}.npy has shape {array.shape}, not {file.shape}): encode the data again")
    return array
