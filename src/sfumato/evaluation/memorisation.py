"""Do samples repeat training images? Nearest neighbours in feature space, and what distance is near."""

from dataclasses import dataclass

import torch
from torch import Tensor

from sfumato.evaluation.precision_recall import blocks, neighbour_radii


@dataclass(frozen=True)
class Neighbours:
    """For each of N samples its K nearest training rows, nearest first.

    `rows`, `distances`: (N, K). `ratio` (N,): distance to the nearest over that one's distance to its own nearest other
    training row; below 1 the training image has no relative as close as the sample.
    """

    rows: Tensor
    distances: Tensor
    ratio: Tensor

    @property
    def authenticity(self) -> float:
        """Share of samples with a ratio above 1 (Alaa et al. 2022, section 3.3).

        About a half or more for fresh draws of the training images' own distribution; near 0 for copies.
        """
        return (self.ratio > 1).double().mean().item()

    def copies(self, below: float = 0.5) -> float:
        """Share of samples at less than `below` of that distance: candidates for copies."""
        return (self.ratio < below).double().mean().item()


def neighbours(samples: Tensor, training: Tensor, k: int = 3) -> Neighbours:
    """The training rows (M, D) nearest to samples (N, D), Euclidean in float64.

    Raises ValueError where there are fewer than max(k, 2) training rows.
    """
    if len(training) < max(k, 2):
        raise ValueError(f"{k} neighbours need {max(k, 2)} training rows at least, not {len(training)}")
    found = [distances.topk(k, dim=1, largest=False) for _, distances in blocks(samples, training)]
    distances, rows = torch.cat([f.values for f in found]), torch.cat([f.indices for f in found])
    (own,) = neighbour_radii(training, (1,))
    near, scale = distances[:, 0], own[rows[:, 0]]
    # twins in the training set are at distance 0: a sample there repeats them, any other is infinitely far
    ratio = torch.where(scale > 0, near / scale, torch.where(near > 0, torch.inf, 0.0))
    return Neighbours(rows, distances, ratio)
