"""The order of the data, a pure function of (seed, position): it needs no stored state to resume a run."""

from collections.abc import Callable, Sized
from functools import lru_cache

import numpy as np
import torch
from numpy.typing import NDArray

from sfumato.data.dataset import Blocks, blocks_of
from sfumato.rng import generator


@lru_cache(maxsize=4)
def order(seed: int, epoch: int, n: int) -> NDArray[np.int64]:
    """The permutation of range(n) of an epoch; read-only, shape (n,)."""
    permutation: NDArray[np.int64] = torch.randperm(n, generator=generator(seed, "order", epoch)).numpy()
    permutation.flags.writeable = False
    return permutation


def positions(step: int, batch: int, rank: int = 0, world: int = 1, first: int = 0) -> range:
    """Positions in the endless stream of examples that this rank reads at this step; step 0 begins at `first`.

    The global batch of a step is contiguous and ranks take consecutive slices of it: 2 ranks with batch b together read
    what 1 rank reads with batch 2 b. With gradient accumulation `step` counts micro-batches. A resumed run counts its
    steps from 0 and passes the number of samples read before as `first`: it continues there with any number of ranks.
    """
    if step < 0 or batch < 1 or not 0 <= rank < world or first < 0:
        raise ValueError(
            f"step {step} >= 0, batch {batch} >= 1, 0 <= rank {rank} < world {world} and first {first} >= 0 must hold"
        )
    start = first + (step * world + rank) * batch
    return range(start, start + batch)


def index_at(seed: int, position: int, n: int) -> int:
    """The example at a position of the stream: epoch after epoch, each a permutation of range(n), without a gap."""
    epoch, place = divmod(position, n)
    return int(order(seed, epoch, n)[place])


def batch_indices(seed: int, step: int, batch: int, n: int, rank: int = 0, world: int = 1) -> list[int]:
    """Indices of the step's micro-batch on this rank, length `batch`; n may be smaller than the batch, but not 0."""
    if n < 1:
        raise ValueError("an empty set has no order")
    return [index_at(seed, position, n) for position in positions(step, batch, rank, world)]


class BlockOrder:
    """An order in which rows that are stored together are read at about the same time.

    In each epoch the blocks are permuted, and the rows of each `together` blocks that follow each other are permuted
    among them. Like `index_at` it is a pure function of (seed, position): every row once an epoch, nothing stored.
    """

    def __init__(self, seed: int, blocks: Blocks) -> None:
        self._seed, self._together = seed, blocks.together
        self._starts = np.asarray(blocks.starts, np.int64)
        self._plan = lru_cache(maxsize=2)(self._planned)
        self._rows = lru_cache(maxsize=4)(self._permuted)

    def __call__(self, position: int) -> int:
        """The row at a position of the stream."""
        epoch, place = divmod(position, int(self._starts[-1]))
        _, ends = self._plan(epoch)
        group = int(np.searchsorted(ends, place, side="right"))
        first = int(ends[group - 1]) if group else 0
        return int(self._rows(epoch, group)[place - first])

    def _planned(self, epoch: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """The epoch's permutation of the blocks, and the position at which each group of blocks ends."""
        count = len(self._starts) - 1
        blocks = torch.randperm(count, generator=generator(self._seed, "blocks", epoch)).numpy()
        ends = np.cumsum(np.diff(self._starts)[blocks])
        last = np.minimum(np.arange(self._together, count + self._together, self._together), count) - 1
        return blocks, ends[last]

    def _permuted(self, epoch: int, group: int) -> NDArray[np.int64]:
        """The rows of a group of blocks in the order in which they are read."""
        chosen = self._plan(epoch)[0][group * self._together : (group + 1) * self._together]
        rows = np.concatenate([np.arange(self._starts[block], self._starts[block + 1]) for block in chosen])
        mixed: NDArray[np.int64] = rows[
            torch.randperm(len(rows), generator=generator(self._seed, "rows", epoch, group)).numpy()
        ]
        return mixed


def order_of(seed: int, source: Sized) -> Callable[[int], int]:
    """Position in the stream -> row of the source: by its blocks where it has some, else any row at any time."""
    blocks = blocks_of(source)
    if blocks is not None:
        return BlockOrder(seed, blocks)
    n = len(source)
    return lambda position: index_at(seed, position, n)
