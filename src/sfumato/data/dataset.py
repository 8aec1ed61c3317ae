"""The interface of datasets of images or latents, as the loader uses it."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Protocol, TypeVar, runtime_checkable

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

Progress = Callable[[int, int], None]
"""Called with (done, total) during a long pass; showing a progress bar is up to the caller."""


@dataclass(frozen=True)
class Example:
    """One image, uint8 (3, H, W), and its fields: text (str), label (int), further columns by name."""

    image: Tensor
    fields: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class LatentExample:
    """One cached latent, float16 (M, h, w) as the autoencoder's `Encoding.moments`, and the fields of its image."""

    moments: Tensor
    fields: dict[str, Any] = field(default_factory=dict)


Item = TypeVar("Item", bound=Example | LatentExample, covariant=True)


class Source(Protocol[Item]):
    """Numbered examples, all with the same fields and the same shape; of several shapes if it is `Bucketed`.

    `fields` names the keys of every example's fields; `classes` the names of the labels, None without labels;
    `captions()` all texts in order, None without text; `fingerprint()` changes when any example does.
    Indexing is deterministic. Reading may raise `UnreadableImage`; the loader then uses another example.
    """

    @property
    def fields(self) -> tuple[str, ...]: ...

    @property
    def classes(self) -> tuple[str, ...] | None: ...

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> Item: ...

    def fingerprint(self) -> str: ...

    def captions(self) -> list[str] | None: ...


Dataset = Source[Example]
"""A set of images."""

LatentSource = Source[LatentExample]
"""A set of cached latents."""


@runtime_checkable
class Varied(Protocol[Item]):
    """A source with random variants of its examples (crop, flip): `variant(index, seed)` is a pure function of both."""

    def variant(self, index: int, seed: int, /) -> Item: ...


@dataclass(frozen=True)
class Blocks:
    """Rows stored together: block i holds rows starts[i] to starts[i + 1]; `together` blocks are shuffled at a time."""

    starts: tuple[int, ...]
    together: int


@runtime_checkable
class Blocked(Protocol):
    """A source whose rows are stored in blocks, which are best read one after the other; None if they are not."""

    def blocks(self) -> Blocks | None: ...


def blocks_of(source: object) -> Blocks | None:
    """The blocks of a source, if it has any."""
    return source.blocks() if isinstance(source, Blocked) else None


@dataclass(frozen=True)
class Buckets:
    """The size (H, W) of each row's image: that of the bucket `rows[i]` of `sizes`; rows (N,)."""

    sizes: tuple[tuple[int, int], ...]
    rows: NDArray[np.int64]

    @cached_property
    def counts(self) -> tuple[int, ...]:
        """Rows in each bucket."""
        return tuple(np.bincount(self.rows, minlength=len(self.sizes)).tolist())

    @property
    def used(self) -> tuple[tuple[int, int], ...]:
        """The sizes of the buckets that hold a row."""
        return tuple(size for size, count in zip(self.sizes, self.counts, strict=True) if count)

    def of(self, row: int) -> tuple[int, int]:
        """(H, W) of a row's image."""
        return self.sizes[self.rows[row]]

    def taken(self, rows: Sequence[int] | NDArray[np.int64]) -> "Buckets":
        """Those of some rows, in their order."""
        return Buckets(self.sizes, self.rows[np.asarray(rows, np.int64)])


@runtime_checkable
class Bucketed(Protocol):
    """A source whose images have several sizes; None if all have one."""

    def buckets(self) -> Buckets | None: ...


def buckets_of(source: object) -> Buckets | None:
    """The sizes of the rows of a source, if it has several."""
    return source.buckets() if isinstance(source, Bucketed) else None


class UnreadableImage(Exception):  # noqa: N818 - names what was found, as UnidentifiedImageError does
    """A file that cannot be decoded, with its `path` and the `reason`."""

    def __init__(self, path: str, reason: str) -> None:
        super().__init__(f"{path}: {reason}")
        self.path = path
        self.reason = reason


def example_or_variant(source: Source[Item], index: int, seed: int | None) -> Item:
    """The example itself, or its random variant if a seed is given and the source has variants."""
    if seed is not None and isinstance(source, Varied):
        varied: Item = source.variant(index, seed)
        return varied
    return source[index]
