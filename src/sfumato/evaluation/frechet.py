"""The Fréchet distance between two sets of features, each taken for a Gaussian (Heusel et al. 2017, eq. 6)."""

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor


class GaussianStatistics:
    """Mean and covariance of features that arrive in batches, float64; memory D² whatever the number of rows.

    Sums are taken about the first batch's mean, so that a large offset costs no digits.
    """

    def __init__(self, dim: int) -> None:
        self.dim = dim
        self.count = 0
        self._origin = torch.zeros(dim, dtype=torch.float64)
        self._sum = torch.zeros(dim, dtype=torch.float64)
        self._products = torch.zeros(dim, dim, dtype=torch.float64)

    @classmethod
    def of(cls, features: Tensor | Iterable[Tensor]) -> "GaussianStatistics":
        """The statistics of (N, D) features, or of batches of them. Raises ValueError where there is none."""
        batches = [features] if isinstance(features, Tensor) else features
        found: GaussianStatistics | None = None
        for batch in batches:
            found = found or cls(batch.shape[1])
            found.update(batch)
        if found is None:
            raise ValueError("GaussianStatistics.of was given no features")
        return found

    def update(self, features: Tensor) -> None:
        """Adds rows (B, D). Raises ValueError for another D or values that are not finite."""
        if features.dim() != 2 or features.shape[1] != self.dim:
            raise ValueError(f"features {tuple(features.shape)} must be (B, {self.dim})")
        x = features.detach().cpu().double()
        if not torch.isfinite(x).all():
            raise ValueError("features hold values that are not finite (NaN or inf)")
        if self.count == 0 and len(x):
            self._origin = x.mean(dim=0)
        d = x - self._origin
        self._sum += d.sum(dim=0)
        self._products += d.T @ d
        self.count += len(x)

    def mean(self) -> Tensor:
        """(D,). Raises ValueError without a row."""
        if self.count < 1:
            raise ValueError("statistics of no features have no mean")
        return self._origin + self._sum / self.count

    def covariance(self) -> Tensor:
        """(D, D), of the sample (divided by N − 1). Raises ValueError with fewer than two rows."""
        if self.count < 2:
            raise ValueError(f"a covariance needs two rows of features at least, not {self.count}")
        return (self._products - torch.outer(self._sum, self._sum) / self.count) / (self.count - 1)

    def tensors(self) -> dict[str, Tensor]:
        """Everything to store."""
        count = torch.tensor(self.count)
        return {"count": count, "origin": self._origin, "sum": self._sum, "products": self._products}

    @classmethod
    def from_tensors(cls, tensors: dict[str, Tensor]) -> "GaussianStatistics":
        """The statistics that `tensors` gave."""
        found = cls(len(tensors["sum"]))
        found.count = int(tensors["count"])
        found._origin, found._sum, found._products = tensors["origin"], tensors["sum"], tensors["products"]
        return found


def frechet_distance(a: GaussianStatistics, b: GaussianStatistics) -> float:
    """|μ₁ − μ₂|² + tr(C₁ + C₂ − 2 (C₁ C₂)^½), the squared distance that FID reports; float64.

    The trace of the root is the sum of the roots of the eigenvalues of the symmetric C₁^½ C₂ C₁^½.
    Raises ValueError where the dimensions differ or either has fewer than two rows.
    """
    if a.dim != b.dim:
        raise ValueError(f"statistics of {a.dim} and of {b.dim} dimensions cannot be compared")
    return frechet_distance_of_moments(a.mean(), a.covariance(), b.mean(), b.covariance())


def frechet_distance_of_moments(mean_1: Tensor, cov_1: Tensor, mean_2: Tensor, cov_2: Tensor) -> float:
    """The same of means (D,) and covariances (D, D), float64."""
    root = root_of_covariance(cov_1)
    cross = sum_of_roots(root.T @ cov_2 @ root)
    distance = (mean_1 - mean_2).square().sum() + cov_1.trace() + cov_2.trace() - 2 * cross
    return max(0.0, distance.item())


def root_of_covariance(matrix: Tensor) -> Tensor:
    """R (D, L) with R Rᵀ = the covariance (D, D); L counts the features that vary.

    Eigenvalues that rounding made negative count as 0.
    """
    live = matrix.diagonal() > 0  # features that never fire are common, and their zeros are what solvers stumble over
    values, vectors = _solved(torch.linalg.eigh, matrix[live][:, live])
    root = matrix.new_zeros(len(matrix), int(live.sum()))
    root[live] = (vectors * values.clamp_min(0).sqrt()) @ vectors.T
    return root


def sum_of_roots(matrix: Tensor) -> Tensor:
    """The trace of the root of a positive semi-definite matrix (D, D)."""
    live = matrix.diagonal() > 0
    values: Tensor = _solved(torch.linalg.eigvalsh, matrix[live][:, live])
    return values.clamp_min(0).sqrt().sum()


def _solved(solve: Callable[[Tensor], Any], matrix: Tensor) -> Any:
    """The eigenvalues; where equal ones stop the solver, of the matrix with them set apart by rounding's size."""
    try:
        return solve(matrix)
    except torch.linalg.LinAlgError:
        D = len(matrix)
        steps = torch.arange(1, D + 1, dtype=matrix.dtype) / D
        return solve(matrix + torch.diag(1e-13 * matrix.trace() * steps))
