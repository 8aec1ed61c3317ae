"""The Fréchet distance for infinitely many samples, and its intervals from resampling.

The distance of N samples is too large by about c / N (Chong & Forsyth 2020): two models with different c may be
ranked wrongly at any N. A line over 1 / N through distances of random parts of the samples has the intercept FD∞.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from sfumato.evaluation.frechet import GaussianStatistics, root_of_covariance, sum_of_roots

POINTS = 5


@dataclass(frozen=True)
class Interval:
    """A value with bounds from resampling the images."""

    value: float
    low: float
    high: float


class SampledDistance:
    """The Fréchet distances of many parts of one set of features (N, D) from the same reference.

    Shared terms are computed once; each part then takes one product and the eigenvalues of a symmetric matrix of the
    smaller of the two sides.
    """

    def __init__(self, features: Tensor, reference: GaussianStatistics) -> None:
        """Raises ValueError if the dimensions differ."""
        if features.dim() != 2 or features.shape[1] != reference.dim:
            raise ValueError(f"features {tuple(features.shape)} must be (N, {reference.dim})")
        covariance = reference.covariance()
        self._trace = covariance.trace()
        self._x = features.double() - reference.mean()
        self._projected = self._x @ root_of_covariance(covariance)

    def __len__(self) -> int:
        return len(self._x)

    def __call__(self, rows: Tensor | None = None) -> float:
        """The distance of some rows (n,), repeated ones counted again, or of all. Raises ValueError below two."""
        x = self._x if rows is None else self._x[rows]
        y = self._projected if rows is None else self._projected[rows]
        n = len(x)
        if n < 2:
            raise ValueError(f"a Fréchet distance needs two samples at least, not {n}")
        mean = x.mean(dim=0)
        spread = (x.square().sum() - n * mean.square().sum()) / (n - 1)
        y = y - y.mean(dim=0)
        gram = y @ y.T if n < y.shape[1] else y.T @ y
        cross = sum_of_roots(gram) / (n - 1) ** 0.5
        return max(0.0, (mean.square().sum() + spread + self._trace - 2 * cross).item())


def extrapolate(
    distance: SampledDistance, generator: torch.Generator, points: int = POINTS, pool: Tensor | None = None
) -> float:
    """FD∞: the intercept of a line over 1 / n through the distances of random parts of n = N/points, 2N/points, ... N.

    Args:
        distance: of the samples.
        generator: chooses the parts, on the CPU.
        points: number of sizes.
        pool: rows to use as the samples (a resample of them); all by default.

    Raises:
        ValueError: for fewer than two points, or too few rows for them.
    """
    rows = torch.arange(len(distance)) if pool is None else pool
    N = len(rows)
    if points < 2 or N // points < 2:
        raise ValueError(f"{points} points through {N} samples: give two points or more and two samples for each")
    sizes = [N * (i + 1) // points for i in range(points)]
    values = [distance(rows[torch.randperm(N, generator=generator)[:n]]) for n in sizes]
    x = torch.tensor([1.0 / n for n in sizes], dtype=torch.float64)
    y = torch.tensor(values, dtype=torch.float64)
    slope = ((x - x.mean()) * (y - y.mean())).sum() / (x - x.mean()).square().sum()
    return (y.mean() - slope * x.mean()).item()


def distance_interval(
    distance: SampledDistance, generator: torch.Generator, resamples: int = 20, level: float = 0.95
) -> Interval:
    """The distance at this N and how much it would vary with other N samples.

    Resamples repeat rows and are therefore higher on average; only their spread about their own mean is used.
    """
    N = len(distance)
    resampled = [distance(torch.randint(N, (N,), generator=generator)) for _ in range(resamples)]
    return _about(distance(), resampled, level)


def extrapolated_interval(
    distance: SampledDistance, generator: torch.Generator, resamples: int = 20, level: float = 0.95
) -> Interval:
    """FD∞ and how much it would vary with other N samples, estimated in the same way."""
    N = len(distance)
    value = extrapolate(distance, generator)
    resampled = [
        extrapolate(distance, generator, pool=torch.randint(N, (N,), generator=generator)) for _ in range(resamples)
    ]
    return _about(value, resampled, level)


def _about(value: float, resampled: Sequence[float], level: float) -> Interval:
    """The value with the resamples' quantiles about their mean, equal parts left outside the level."""
    tail = (1 - level) / 2
    values = torch.tensor(resampled, dtype=torch.float64)
    low, high = torch.quantile(values, torch.tensor([tail, 1 - tail], dtype=torch.float64)).tolist()
    centre = values.mean().item()
    return Interval(value, value + low - centre, value + high - centre)
