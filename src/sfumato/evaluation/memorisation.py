"""Whether samples repeat training images: nearest neighbours in feature space, and relative distances."""

from dataclasses import dataclass

import torch
from torch import Tensor

from sfumato.evaluation.precision_recall import blocks, neighbour_radii


@dataclass(frozen=True)
class Neighbours:
    """For each of N samples its K nearest training rows, nearest first.

    `rows`, `distances`: (N, K). `ratio` (N,): distance to the nearest, divided by the distance of that training row to
    its own nearest other one; below 1 the sample is closer to the training image than any other training image is.
    """

    rows: Tensor
    distances: Tensor
    ratio: Tensor

    @property
    def authenticity(self) -> float:
        """Share of samples with a ratio above 1 (Alaa et al. 2022, section 3.3).

        About a half or more for new samples of the training distribution; near 0 for copies.
        """
        return (self.ratio > 1).double().mean().item()

    def copies(self, below: float = 0.5) -> float:
        """Share of samples with a ratio less than `below`: candidates for copies."""
        return (self.ratio < below).double().mean().item()


def nearest_rows(samples: Tensor, training: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """The k training rows (M, D) nearest to each of the samples (N, D), and their distances, (N, k) each, ascending.

    Euclidean, in float64.
    """
    found = [distances.topk(k, dim=1, largest=False) for _, distances in blocks(samples, training)]
    return torch.cat([f.indices for f in found]), torch.cat([f.values for f in found])


def memorised_share(distances: Tensor, below: float = 1 / 3) -> float:
    """f_mem: the share of samples that are less than `below` as far from the nearest training row as from the second.

    `distances` (N, K >= 2) to training rows, ascending (Yoon et al. 2023; Gu et al. 2023, section 2). A sample equal to
    a training row that is there twice does not count.
    """
    return (distances[:, 0] < below * distances[:, 1]).double().mean().item()


def neighbours(samples: Tensor, training: Tensor, k: int = 3) -> Neighbours:
    """The training rows (M, D) nearest to samples (N, D), Euclidean in float64.

    Raises ValueError if there are fewer than max(k, 2) training rows.
    """
    if len(training) < max(k, 2):
        raise ValueError(f"{k} neighbours need {max(k, 2)} training rows at least, not {len(training)}")
    rows, distances = nearest_rows(samples, training, k)
    (own,) = neighbour_radii(training, (1,))
    near, scale = distances[:, 0], own[rows[:, 0]]
    # duplicates in the training set have distance 0: an equal sample has ratio 0, any other infinity
    ratio = torch.where(scale > 0, near / scale, torch.where(near > 0, torch.inf, 0.0))
    return Neighbours(rows, distances, ratio)
