"""Writing a latent cache: resumable row by row, and under its final name only when it is finished."""

import errno
import json
import math
import os
import shutil
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
from numpy.lib.format import open_memmap
from numpy.typing import NDArray
from torch import Tensor

from sfumato.data.latent_arrays import LatentArrays, array_files, write_places
from sfumato.data.latent_header import LatentHeader, partial_path, read_header
from sfumato.data.latents import DONE, TODO, UNREADABLE, LatentDataset, statistics_of
from sfumato.data.leftovers import draft_path
from sfumato.errors import UserError
from sfumato.plain_json import to_json

_FLUSH_SECONDS = 30.0


class LatentWriter:
    """Fills a cache; rows written before an interruption are kept, and `todo` lists the remaining ones.

    Several processes may write disjoint rows of one cache, each with its own `part`; part 0 must be opened first and be
    the one to finish, after the others were closed. Use as a context manager or call `close`.
    """

    def __init__(
        self, path: Path, header: LatentHeader, part: int = 0, groups: NDArray[np.int64] | None = None
    ) -> None:
        """Creates `path`.partial, or continues it; UserError if it belongs to another header or `path` exists.

        `groups` (N,) is the number of each row's group, where the header has groups.
        """
        if path.exists():
            raise UserError(f"latent cache {path} exists already: open it, or remove it to encode again")
        self.path = path
        self.header = header
        self._folder = partial_path(path)
        if part == 0:
            self._create(groups)
        elif not self._folder.is_dir():
            raise ValueError("part 0 of a latent cache must be opened before the others")
        self.header = header = read_header(self._folder)  # one that is continued may be stored in other files
        self._arrays = LatentArrays(self._folder, header, "r+")
        self._state = open_memmap(self._folder / "state.npy", mode="r+")
        if part == 0:
            self._forget_rows_without_fields()
        self._lines = (self._folder / f"fields-{part}.jsonl").open("a", encoding="utf-8")
        self._t_flush = time.monotonic()

    def todo(self, variant: int = 0) -> list[int]:
        """Rows not written yet, ascending."""
        return np.flatnonzero(self._state[variant] == TODO).tolist()

    def write(
        self, rows: Sequence[int], moments: Tensor, fields: Mapping[str, Any] | None = None, variant: int = 0
    ) -> None:
        """Stores moments (B, M, h, w) of B rows; `fields` as the loader collates them, needed with variant 0 only.

        Raises UserError if the moments are not finite in float16, ValueError if shapes or fields do not fit the header.
        """
        with np.errstate(over="ignore"):  # reported below, by row
            values = moments.detach().float().cpu().numpy().astype(np.float16)
        for shape in {self._arrays.group_of(row).shape for row in rows}:
            if values.shape != (len(rows), *shape):
                raise ValueError(f"moments {values.shape} do not fit {len(rows)} rows of shape {shape}")
        if not np.isfinite(values).all():
            bad = [row for row, value in zip(rows, values, strict=True) if not np.isfinite(value).all()]
            raise UserError(
                f"the autoencoder's moments of rows {bad} exceed float16: check its training, or train it further"
            )
        index = np.asarray(rows, dtype=np.int64)
        self._arrays.write_moments(variant, index, values)
        if variant == 0:
            with _room_in(self.path.parent, self.header):
                self._write_fields(index, fields or {})
        self._state[variant, index] = DONE  # last: a row that is marked as done is complete
        if time.monotonic() - self._t_flush > _FLUSH_SECONDS:
            self.flush()

    def skip(self, row: int, error: Exception) -> None:
        """Notes that a row's image cannot be read, in all variants; fits `sweep`'s `unreadable`."""
        self._lines.write(to_json({"row": row, "unreadable": str(error)}, ensure_ascii=False) + "\n")
        self._lines.flush()
        self._state[:, row] = UNREADABLE

    def flush(self) -> None:
        """Writes everything to the disk, the state after the data that it describes."""
        with _room_in(self.path.parent, self.header):
            self._arrays.flush()
            self._lines.flush()
            os.fsync(self._lines.fileno())
            self._state.flush()
        self._t_flush = time.monotonic()

    def finish(self) -> LatentDataset:
        """Computes the statistics, moves the cache to its final name and opens it; ValueError if rows are missing."""
        missing = int((self._state == TODO).sum())
        if missing:
            raise ValueError(f"{missing} rows of the latent cache {self.path} are not written yet")
        found = statistics_of(self._arrays.parts(self._state), self.header.variational)
        fields = dict(_field_lines(self._folder))
        statistics = {"mean": found.mean.tolist(), "std": found.std.tolist()}
        with _room_in(self.path.parent, self.header):
            with (self._folder / "fields.jsonl").open("w", encoding="utf-8") as out:
                for row in range(self.header.count):
                    out.write(to_json(fields.get(row, {}), ensure_ascii=False) + "\n")
            (self._folder / "statistics.json").write_text(to_json(statistics))
        self.flush()
        self.close()
        for name in self._folder.glob("fields-*.jsonl"):
            name.unlink()
        self._folder.rename(self.path)
        return LatentDataset(self.path)

    def close(self) -> None:
        """Flushes and closes the files; may be called twice."""
        if not self._lines.closed:
            self.flush()
            self._lines.close()

    def __enter__(self) -> "LatentWriter":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _create(self, groups: NDArray[np.int64] | None) -> None:
        """Creates the folder with all its arrays, empty, or checks that an existing one has the same header."""
        if self._folder.exists():
            if read_header(self._folder).key() != self.header.key():
                raise UserError(
                    f"{self._folder} was started with another autoencoder, dataset or shape: remove it to encode again"
                )
            with _room_in(self.path.parent, self.header):
                for path in self._folder.glob("*.npy"):
                    _reserve(path)
            return
        draft = draft_path(self.path, os.getpid())  # under the lock of the finished cache
        shutil.rmtree(draft, ignore_errors=True)
        draft.mkdir(parents=True)
        header = self.header
        try:
            with _room_in(self.path.parent, header):
                for file in array_files(header):
                    open_memmap(draft / f"{file.name}.npy", mode="w+", dtype=file.dtype, shape=file.shape).flush()
                    _reserve(draft / f"{file.name}.npy")
                if groups is not None:
                    write_places(draft, groups, header)
                (draft / "header.json").write_text(header.model_dump_json(indent=1), encoding="utf-8")
            draft.rename(self._folder)
        finally:
            shutil.rmtree(draft, ignore_errors=True)

    def _forget_rows_without_fields(self) -> None:
        """Marks rows as to do whose line of fields was lost in a crash of the machine."""
        known = np.zeros(self.header.count, dtype=bool)
        known[[row for row, _ in _field_lines(self._folder)]] = True
        self._state[:, ~known] = TODO
        for path in self._folder.glob("fields-*.jsonl"):
            text = path.read_bytes()
            if text and not text.endswith(b"\n"):  # a partial line would corrupt the next one
                path.write_bytes(text[: text.rfind(b"\n") + 1])

    def _write_fields(self, index: NDArray[np.int64], fields: Mapping[str, Any]) -> None:
        tensors = {name: fields[name] for name in self.header.tensors}
        for name, value in tensors.items():
            self._arrays.write_tensor(name, index, value.numpy())
        lists = {name: _plain(value) for name, value in fields.items() if name not in tensors}
        for i, row in enumerate(index.tolist()):
            values = {name: value[i] for name, value in lists.items()}
            self._lines.write(to_json({"row": row, "fields": values}, ensure_ascii=False) + "\n")
        self._lines.flush()


def _reserve(path: Path) -> None:
    """Allocates the file on the disk: writing a mapped page without space would end the process by a signal."""
    if sys.platform == "darwin":  # has no posix_fallocate
        return
    with path.open("rb+") as file:
        os.posix_fallocate(file.fileno(), 0, path.stat().st_size)


@contextmanager
def _room_in(cache: Path, header: LatentHeader) -> Iterator[None]:
    """Turns a full disk into a UserError with the space that is needed."""
    try:
        yield
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        needed = sum(file.dtype.itemsize * math.prod(file.shape) for file in array_files(header))
        raise UserError(
            f"the disk is full: the latents of {header.count} images take {needed / 2**20:.1f} MiB in {str(cache)!r}, "
            "beside their captions; free some space and run the same command again, or give --cache a folder elsewhere"
        ) from error


def _plain(value: Any) -> Any:
    if not isinstance(value, Tensor):
        return value
    if value.dim() != 1:
        raise ValueError("a field with a tensor in each example must be named in the header's tensors")
    return value.tolist()


def _field_lines(folder: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """(row, fields) of all parts; a last line cut off by an interruption is skipped."""
    for path in sorted(folder.glob("fields-*.jsonl")):
        with path.open("rb") as lines:
            for line in lines:
                if line.endswith(b"\n"):
                    entry = json.loads(line)
                    yield entry["row"], entry.get("fields", {})
