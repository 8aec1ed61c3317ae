"""The order of the data, a pure function of (seed, position): it needs no stored state to resume a run."""

from functools import lru_cache

import numpy as np
import torch
from numpy.typing import NDArray

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
