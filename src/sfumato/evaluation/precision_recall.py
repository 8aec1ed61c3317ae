"""How much of one set is in the other's manifold, in feature space: precision, recall, density, coverage.

Precision and recall as Kynkäänniemi et al. 2019 (eqs. 1 and 2), density and coverage as Naeem et al. 2020 (eqs. 4, 5).
"""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

BLOCK = 1024


@dataclass(frozen=True)
class PrecisionRecall:
    """Shares in [0, 1]; density may exceed 1."""

    precision: float
    recall: float
    density: float
    coverage: float


def precision_recall(real: Tensor, fake: Tensor, k: int = 3, k_density: int = 5) -> PrecisionRecall:
    """The four numbers.

    precision: share of fake rows inside the ball of some real row, whose radius reaches its k-th real neighbour;
    recall: the same with the sets exchanged. density: mean number of real balls (of `k_density`) that contain a fake
    row, over k_density; coverage: share of real rows whose ball contains a fake row. They depend on the numbers of
    rows.

    Args:
        real, fake: (N, D) and (M, D).
        k: neighbours of precision and recall.
        k_density: neighbours of density and coverage.

    Raises:
        ValueError: for other shapes, or no more rows than neighbours.
    """
    if real.dim() != 2 or fake.dim() != 2 or real.shape[1] != fake.shape[1]:
        raise ValueError(f"features {tuple(real.shape)} and {tuple(fake.shape)} must be (N, D) and (M, D)")
    most = max(k, k_density)
    if min(len(real), len(fake)) <= most or min(k, k_density) < 1:
        raise ValueError(f"{most} neighbours need {most + 1} rows of each set at least, not {len(real)}, {len(fake)}")
    real_k, real_density = neighbour_radii(real, (k, k_density))
    (fake_k,) = neighbour_radii(fake, (k,))
    inside = torch.zeros(len(fake), dtype=torch.bool)
    recalled = torch.zeros(len(real), dtype=torch.bool)
    covered = torch.zeros(len(real), dtype=torch.bool)
    balls = 0
    for start, distances in blocks(fake, real):
        rows = slice(start, start + len(distances))
        inside[rows] = (distances <= real_k).any(dim=1)
        recalled |= (distances <= fake_k[rows, None]).any(dim=0)
        within = distances <= real_density
        balls += int(within.sum())
        covered |= within.any(dim=0)
    return PrecisionRecall(
        precision=inside.double().mean().item(),
        recall=recalled.double().mean().item(),
        density=balls / (k_density * len(fake)),
        coverage=covered.double().mean().item(),
    )


def neighbour_radii(features: Tensor, ks: tuple[int, ...]) -> list[Tensor]:
    """For each k the distances (N,) of the rows to their k-th nearest other row, float64."""
    found: list[list[Tensor]] = [[] for _ in ks]
    for start, distances in blocks(features, features):
        own = torch.arange(len(distances))
        distances[own, start + own] = torch.inf
        nearest = distances.topk(max(ks), dim=1, largest=False).values
        for radii, k in zip(found, ks, strict=True):
            radii.append(nearest[:, k - 1])
    return [torch.cat(radii) for radii in found]


def blocks(x: Tensor, y: Tensor) -> Iterator[tuple[int, Tensor]]:
    """Distances of x (N, D) to y (M, D), float64, in blocks of rows: (first row, (rows, M)) each.

    The whole matrix is never in memory.
    """
    others = y.double()
    for start in range(0, len(x), BLOCK):
        yield start, torch.cdist(x[start : start + BLOCK].double(), others)
