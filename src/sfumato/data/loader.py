"""Batches read ahead by threads, in an order that does not depend on the number of threads."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from types import TracebackType
from typing import Any, Generic

import numpy as np
import torch
from torch import Tensor

from sfumato.data.bucket_order import batches_order
from sfumato.data.dataset import (
    Example,
    Item,
    LatentExample,
    Progress,
    Source,
    UnreadableImage,
    buckets_of,
    example_or_variant,
)
from sfumato.data.order import positions
from sfumato.data.prefetch import Prefetch
from sfumato.errors import UserError
from sfumato.rng import derive

_TRIES = 100


@dataclass(frozen=True)
class Batch:
    """The data of one step: `index` (B,) rows of the set; `values` the images or moments; `fields` collated by name.

    text is a list of B str, label (B,) long, other numbers and tensors are stacked, all else is a list of B.
    """

    step: int
    index: tuple[int, ...]
    values: Tensor
    fields: dict[str, Any]
    cached: bool = False

    @property
    def images(self) -> Tensor:
        """(B, 3, H, W) float32 in [-1, 1]; ValueError if the batch holds cached latents."""
        if self.cached:
            raise ValueError("this batch holds the moments of cached latents, not images")
        return self.values

    @property
    def moments(self) -> Tensor:
        """(B, M, h, w) float32, as `Encoding.moments`; ValueError if the batch holds images."""
        if not self.cached:
            raise ValueError("this batch holds images, not the moments of cached latents")
        return self.values

    def to(self, device: torch.device | str) -> "Batch":
        """The batch with its tensors on the device; the copy overlaps with computation if the loader pins memory."""

        def move(value: Any) -> Any:
            return value.to(device, non_blocking=True) if isinstance(value, Tensor) else value

        return replace(self, values=move(self.values), fields={k: move(v) for k, v in self.fields.items()})


def to_unit(pixels: Tensor) -> Tensor:
    """uint8 pixels -> float32 in [-1, 1], 0 to -1 and 255 to 1."""
    # numpy: torch would start a team of threads inside each reading thread
    return torch.from_numpy(pixels.numpy().astype(np.float32) / np.float32(127.5) - np.float32(1))


def collate(step: int, index: Sequence[int], examples: Sequence[Example | LatentExample]) -> Batch:
    """A batch of examples of one kind with the same fields; raises ValueError if shapes or fields differ."""
    fields = {name: _column([e.fields[name] for e in examples]) for name in _names(examples)}
    images = [e.image for e in examples if isinstance(e, Example)]
    latents = [e.moments for e in examples if isinstance(e, LatentExample)]
    if len({tuple(t.shape) for t in [*images, *latents]}) != 1:
        raise ValueError(
            f"examples of different shapes cannot share a batch: {sorted({tuple(t.shape) for t in images})}"
        )
    values = torch.stack(latents).float() if latents else to_unit(torch.stack(images))
    return Batch(step, tuple(index), values, fields, cached=bool(latents))


def _names(examples: Sequence[Example | LatentExample]) -> tuple[str, ...]:
    names = {tuple(e.fields) for e in examples}
    if len(names) != 1:
        raise ValueError(f"examples with different fields cannot share a batch: {sorted(names)}")
    return next(iter(names))


def _column(values: list[Any]) -> Any:
    if all(isinstance(v, Tensor) for v in values) and len({v.shape for v in values}) == 1:
        return torch.stack(values)
    if all(isinstance(v, int) for v in values):
        return torch.tensor(values, dtype=torch.long)
    if all(isinstance(v, int | float) for v in values):
        return torch.tensor(values, dtype=torch.float32)
    return values


class Loader(Generic[Item]):
    """Endless iterator over batches from step `start` on; step s reads `batch_indices(seed, s, batch, len(source))`,
    for a source with blocks the rows of `BlockOrder`, for one with images of several sizes those of `BucketOrder`.

    With `position`, step `start` begins at that position of the stream: this many samples were read before, by any
    number of ranks. Random variants are seeded by (seed, position in the stream); `variants=False` reads the plain
    examples.
    An unreadable image is replaced by another one, chosen by its position in the stream, and noted in `unreadable`;
    batches therefore do not depend on `workers` or on where a run was interrupted. `data_wait_seconds` is the total
    time that `next` has waited for data. workers = 0 reads in the calling thread. Use as a context manager or call
    `close`.
    """

    def __init__(
        self,
        source: Source[Item],
        batch: int,
        seed: int,
        start: int = 0,
        rank: int = 0,
        world: int = 1,
        workers: int = 2,
        ahead: int | None = None,
        variants: bool = True,
        pin: bool = False,
        position: int | None = None,
        same_size: int | None = None,
    ) -> None:
        """`ahead` is the number of batches read in advance, by default one more than `workers`; `pin` needs CUDA.

        If images have several sizes, `same_size` samples of the stream, by default a batch of all ranks, have one; the
        stream then begins at a multiple of that number.
        """
        if len(source) == 0:
            raise UserError("the dataset is empty: there is nothing to train on")
        if batch < 1 or workers < 0:
            raise UserError(f"batch {batch} must be at least 1 and workers {workers} at least 0")
        self._source = source
        self._batch, self._seed, self._rank, self._world = batch, seed, rank, world
        self._variants, self._pin = variants, pin
        self._start, self._first = start, start * batch * world if position is None else position
        self._buckets, same_size = buckets_of(source), same_size or batch * world
        if self._buckets is not None:
            self._first = -(-self._first // same_size) * same_size
        self._damaged: dict[str, str] = {}
        self._row_at = batches_order(seed, source, same_size)
        self._peeked: Batch | None = None
        self._queue = Prefetch(self._read, start, workers, ahead)  # last: reading begins here

    @property
    def data_wait_seconds(self) -> float:
        return self._queue.data_wait_seconds

    @property
    def unreadable(self) -> list[tuple[str, str]]:
        """(path, reason) of every image that could not be read."""
        return sorted(self._damaged.copy().items())

    def __iter__(self) -> Iterator[Batch]:
        return self

    def __next__(self) -> Batch:
        batch, self._peeked = self.peek(), None
        return batch

    def peek(self) -> Batch:
        """The batch that `next` returns."""
        if self._peeked is None:
            self._peeked = self._queue.next()
        return self._peeked

    def close(self) -> None:
        """Stops reading ahead and waits for the threads; may be called twice."""
        self._queue.close()

    def __enter__(self) -> "Loader[Item]":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _read(self, step: int) -> Batch:
        places = positions(step - self._start, self._batch, self._rank, self._world, self._first)
        rows = [self._row_at(place) for place in places]
        read = [self._example(step, index, place) for index, place in zip(rows, places, strict=True)]
        batch = collate(step, [index for index, _ in read], [example for _, example in read])
        if not self._pin:
            return batch
        pinned = {k: v.pin_memory() if isinstance(v, Tensor) else v for k, v in batch.fields.items()}
        return replace(batch, values=batch.values.pin_memory(), fields=pinned)

    def _example(self, step: int, index: int, place: int) -> tuple[int, Item]:
        seed = derive(self._seed, "variant", place) if self._variants else None
        for attempt in range(_TRIES):
            try:
                return index, read_one(self._source, index, step, seed)
            except UnreadableImage as error:
                self._damaged[error.path] = error.reason
                index = self._instead(index, derive(self._seed, "instead", place, attempt))
        path, reason = self.unreadable[0]
        raise UserError(f"{_TRIES} images in a row cannot be read, among them {path} ({reason}): check the data folder")

    def _instead(self, index: int, number: int) -> int:
        """Another row by a random number, of the same size."""
        if self._buckets is None:
            return number % len(self._source)
        rows = np.flatnonzero(self._buckets.rows == self._buckets.rows[index])
        return int(rows[number % len(rows)])


def by_size(source: object, rows: Sequence[int]) -> list[Sequence[int]]:
    """The rows in order, split into those of each size where the source's images have several."""
    buckets = buckets_of(source)
    if buckets is None or not len(rows):
        return [rows]
    found = buckets.rows[np.asarray(rows, np.int64)]
    return [np.asarray(rows, np.int64)[found == number].tolist() for number in np.unique(found)]


def read_one(source: Source[Item], index: int, step: int, seed: int | None) -> Item:
    """An example or its variant; errors other than UnreadableImage name example, step and file."""
    try:
        return example_or_variant(source, index, seed)
    except (UnreadableImage, UserError):
        raise
    except Exception as error:
        notes = "".join(f", {note}" for note in getattr(error, "__notes__", ()))
        reason = f"{type(error).__name__}: {error}"
        raise RuntimeError(f"example {index} of step {step} could not be read ({reason}{notes})") from error


def sweep(
    source: Source[Item],
    batch: int,
    rows: Sequence[int] | None = None,
    workers: int = 2,
    unreadable: Callable[[int, UnreadableImage], None] | None = None,
    progress: Progress | None = None,
) -> Iterator[Batch]:
    """Every row (or the given ones) once, in order, as plain examples; the last batch may be shorter.

    Where images have several sizes, those of one size follow each other, and the last batch of each may be shorter.
    Unreadable rows are left out and reported to `unreadable(row, error)`, in the thread of the caller.
    """
    todo = range(len(source)) if rows is None else rows
    chunks = [part[i : i + batch] for part in by_size(source, todo) for i in range(0, len(part), batch)]

    def read(step: int) -> tuple[Batch | None, list[tuple[int, UnreadableImage]]]:
        good: list[int] = []
        examples: list[Item] = []
        bad: list[tuple[int, UnreadableImage]] = []
        for row in chunks[step]:
            try:
                examples.append(read_one(source, int(row), step, None))
                good.append(int(row))
            except UnreadableImage as error:
                bad.append((int(row), error))
        return (collate(step, good, examples) if good else None), bad

    queue = Prefetch(read, 0, workers, None, end=len(chunks))
    try:
        done = 0
        for step in range(len(chunks)):
            result, bad = queue.next()
            for row, error in bad:
                if unreadable is not None:
                    unreadable(row, error)
            if result is not None:
                yield result
            done += len(chunks[step])
            if progress is not None:
                progress(done, len(todo))
    finally:
        queue.close()
