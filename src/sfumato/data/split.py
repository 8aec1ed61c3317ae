"""The held-out split: a pure function of (seed, size), the same for images and their cached latents."""

from collections.abc import Hashable, Sequence
from typing import Generic

import numpy as np
from numpy.typing import NDArray

from sfumato.data.captions import Captioned, Choices
from sfumato.data.dataset import Blocks, Buckets, Item, Source, blocks_of, buckets_of, example_or_variant
from sfumato.errors import UserError
from sfumato.rng import derive


class Subset(Generic[Item]):
    """Some rows of a source, in the given order."""

    def __init__(self, source: Source[Item], rows: Sequence[int] | NDArray[np.int64]) -> None:
        self.source = source
        self.rows = np.asarray(rows, dtype=np.int64)
        self._blocks = self._own_blocks()
        whole = buckets_of(source)
        self._buckets = None if whole is None else whole.taken(self.rows)

    @property
    def fields(self) -> tuple[str, ...]:
        return self.source.fields

    @property
    def classes(self) -> tuple[str, ...] | None:
        return self.source.classes

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> Item:
        return self.source[int(self.rows[index])]

    def variant(self, index: int, seed: int) -> Item:
        return example_or_variant(self.source, int(self.rows[index]), seed)

    def captions(self) -> list[str] | None:
        texts = self.source.captions()
        return None if texts is None else [texts[row] for row in self.rows]

    def caption_choices(self) -> list[Choices] | None:
        found = self.source.caption_choices() if isinstance(self.source, Captioned) else None
        return None if found is None else [found[row] for row in self.rows]

    def blocks(self) -> Blocks | None:
        """The source's blocks as far as their rows are here, if these ascend."""
        return self._blocks

    def buckets(self) -> Buckets | None:
        return self._buckets

    def _own_blocks(self) -> Blocks | None:
        whole = blocks_of(self.source)
        if whole is None or (np.diff(self.rows) < 0).any():
            return None
        starts = np.unique(np.searchsorted(self.rows, whole.starts))  # a block without a row here is none
        return Blocks(tuple(starts.tolist()), whole.together) if len(starts) > 1 else None

    def fingerprint(self) -> str:
        digest = derive(0, "subset", self.source.fingerprint(), self.rows.tobytes().hex())
        return f"{digest:016x}"


def held_out_rows(
    n: int, held_out: int | float, seed: int, groups: Sequence[Hashable] | None = None
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """(training rows, held-out rows) of n examples, each ascending.

    `held_out` is a number of examples (int) or a share of them (float below 1), at least one of two or more; 0 holds
    out none. Examples with equal entries in `groups` (n) stay on one side, so the number is met up to a group; of two
    groups or more at least the smallest is held out. Raises UserError if no example would be left for training.
    """
    if held_out < 0 or (isinstance(held_out, float) and held_out >= 1):
        raise UserError(f"held_out {held_out} must be a share below 1, such as 0.05, or a whole number of examples")
    target = round(n * held_out) if isinstance(held_out, float) else held_out
    if held_out > 0 and n > 1:
        target = max(1, target)
    if target >= n:
        raise UserError(f"held_out {held_out} leaves none of the {n} examples for training: choose a smaller number")
    keys: Sequence[Hashable] = range(n) if groups is None else groups
    number = {key: i for i, key in enumerate(dict.fromkeys(keys))}
    # by a random number for each group, not by a permutation: added examples then move few of the others
    ranked = sorted(number.values(), key=lambda group: derive(seed, "held-out", group))
    group_of = np.array([number[key] for key in keys], dtype=np.int64)
    sizes = np.bincount(group_of, minlength=len(number))
    taken = np.zeros(len(number), dtype=bool)
    count = 0
    for group in ranked:
        if count + int(sizes[group]) <= target:
            taken[group] = True
            count += int(sizes[group])
        if count == target:
            break
    if count == 0 and target > 0 and len(number) > 1:
        taken[min(ranked, key=lambda group: int(sizes[group]))] = True  # the first in rank if several are equal
    held = taken[group_of]
    return np.flatnonzero(~held).astype(np.int64), np.flatnonzero(held).astype(np.int64)


def split(
    source: Source[Item], held_out: int | float, seed: int, groups: Sequence[Hashable] | None = None
) -> tuple[Subset[Item], Subset[Item]]:
    """(training, held-out) parts of a source; arguments and errors as `held_out_rows`."""
    training, held = held_out_rows(len(source), held_out, seed, groups)
    return Subset(source, training), Subset(source, held)
