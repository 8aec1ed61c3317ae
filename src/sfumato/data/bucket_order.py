"""The order of a source whose images have several sizes: a step is of one size, a function of (seed, position)."""

from collections.abc import Callable, Sized
from functools import lru_cache

import numpy as np
import torch
from numpy.typing import NDArray

from sfumato.data.dataset import Blocks, Buckets, blocks_of, buckets_of
from sfumato.data.order import BlockOrder, order_of
from sfumato.rng import generator


class BucketOrder:
    """Position in the stream -> row: the positions of each step, `step` of them, are of rows of one bucket.

    Every bucket has an endless stream of its own, epoch after epoch, which its steps read without a gap. Epoch e of the
    whole has those steps of a bucket of n rows that end within n · e to n · (e + 1) rows of its stream, and permutes
    them with the other buckets' steps: over the epochs every row is read equally often, and none is left out. Nothing
    is stored. A bucket with fewer rows than a step has rows that its steps read more than once.
    """

    def __init__(self, seed: int, buckets: Buckets, step: int, blocks: Blocks | None = None) -> None:
        """`step` samples, over all processes, are of one bucket; rows stored in `blocks` are read near each other."""
        self._seed, self._step = seed, step
        members = [np.flatnonzero(buckets.rows == number) for number in range(len(buckets.sizes))]
        self._members = [rows for rows in members if len(rows)]
        self._counts = np.array([len(rows) for rows in self._members], np.int64)
        self._streams = [self._stream(number, rows, blocks) for number, rows in enumerate(self._members)]
        self._plan = lru_cache(maxsize=4)(self._planned)
        self._place = lru_cache(maxsize=64)(self._placed)

    def __call__(self, position: int) -> int:
        """The row at a position of the stream."""
        step, offset = divmod(position, self._step)
        bucket, number = self._place(step)
        return int(self._members[bucket][self._streams[bucket](number * self._step + offset)])

    def _placed(self, step: int) -> tuple[int, int]:
        """The bucket of a step, and the number of the step in that bucket's stream."""
        epoch = step * self._step // int(self._counts.sum())  # not fewer steps end by then than in the buckets' streams
        while int(self._before(epoch + 1).sum()) <= step:
            epoch += 1
        bucket, number = self._plan(epoch)[step - int(self._before(epoch).sum())]
        return int(bucket), int(number)

    def _before(self, epoch: int) -> NDArray[np.int64]:
        """Steps of each bucket before an epoch."""
        return epoch * self._counts // self._step

    def _planned(self, epoch: int) -> NDArray[np.int64]:
        """(bucket, number) of each step of the epoch, in order."""
        first = self._before(epoch)
        counts = self._before(epoch + 1) - first
        mixed = torch.randperm(int(counts.sum()), generator=generator(self._seed, "buckets", epoch)).numpy()
        buckets = np.repeat(np.arange(len(counts)), counts)[mixed]
        numbers = np.zeros_like(buckets)
        for bucket, start in enumerate(first):  # ascending: rows that are stored together are read near each other
            numbers[buckets == bucket] = start + np.arange(counts[bucket])
        return np.stack([buckets, numbers], 1)

    def _stream(self, number: int, rows: NDArray[np.int64], blocks: Blocks | None) -> Callable[[int], int]:
        """Position in a bucket's stream -> place among its rows."""
        if blocks is not None:
            # blocks without a row of this bucket stay, so that all buckets read the blocks in the same order
            starts = np.searchsorted(rows, blocks.starts)
            return BlockOrder(self._seed, Blocks(tuple(starts.tolist()), blocks.together))
        n = len(rows)

        @lru_cache(maxsize=2)
        def order(epoch: int) -> NDArray[np.int64]:
            permutation: NDArray[np.int64] = torch.randperm(
                n, generator=generator(self._seed, "order", number, epoch)
            ).numpy()
            return permutation

        return lambda position: int(order(position // n)[position % n])


def batches_order(seed: int, source: Sized, step: int) -> Callable[[int], int]:
    """Position in the stream -> row of the source, of which `step` positions at a time are of one size."""
    buckets = buckets_of(source)
    if buckets is not None:
        return BucketOrder(seed, buckets, step, blocks_of(source))
    return order_of(seed, source)
