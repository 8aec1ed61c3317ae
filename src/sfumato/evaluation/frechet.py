"""The Fréchet distance between two sets of features, each modelled as a Gaussian (Heusel et al. 2017, eq. 6)."""

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor


class GaussianStatistics:
    """Mean and covariance of features that arrive in batches, float64; memory D² for any number of rows.

    Sums are computed about the first batch's mean, so that a large offset does not reduce precision. Up to D rows are
    kept, which makes the distance of few samples fast; with more, only the sum of their products is kept.
    """

    def __init__(self, dim: int) -> None:
        self.dim = dim
        self.count = 0
        self._origin = torch.zeros(dim, dtype=torch.float64)
        self._sum = torch.zeros(dim, dtype=torch.float64)
        self._products = torch.zeros(dim, dim, dtype=torch.float64)
        self._rows: list[Tensor] | None = []
        """All rows so far minus the origin; None once `_products` contains them."""

    @classmethod
    def of(cls, features: Tensor | Iterable[Tensor]) -> "GaussianStatistics":
        """The statistics of (N, D) features, or of batches of them. Raises ValueError if there is none."""
        batches = [features] if isinstance(features, Tensor) else features
        statistics: GaussianStatistics | None = None
        for batch in batches:
            statistics = statistics or cls(batch.shape[1])
            statistics.update(batch)
        if statistics is None:
            raise ValueError("GaussianStatistics.of was called without features")
        return statistics

    def update(self, features: Tensor) -> None:
        """Adds rows (B, D). Raises ValueError for another D or values that are not finite."""
        if features.dim() != 2 or features.shape[1] != self.dim:
            raise ValueError(f"features {tuple(features.shape)} must be (B, {self.dim})")
        x = features.detach().cpu().double()
        if not torch.isfinite(x).all():
            raise ValueError("features contain values that are not finite (NaN or inf)")
        if self.count == 0 and len(x):
            self._origin = x.mean(dim=0)
        d = x - self._origin
        self._sum += d.sum(dim=0)
        self.count += len(x)
        if self._rows is not None and self.count <= self.dim:
            self._rows.append(d)
            return
        self._products = self._products_of_all() + d.T @ d
        self._rows = None

    def mean(self) -> Tensor:
        """(D,). Raises ValueError without a row."""
        if self.count < 1:
            raise ValueError("statistics of no features have no mean")
        return self._origin + self._sum / self.count

    def covariance(self) -> Tensor:
        """(D, D), of the sample (divided by N − 1). Raises ValueError with fewer than two rows."""
        if self.count < 2:
            raise ValueError(f"a covariance needs two rows of features at least, not {self.count}")
        return (self._products_of_all() - torch.outer(self._sum, self._sum) / self.count) / (self.count - 1)

    @property
    def keeps_rows(self) -> bool:
        """Whether `root` needs no decomposition, because there are at most D rows."""
        return self._rows is not None

    def root(self) -> Tensor:
        """R (D, L) with R Rᵀ = the covariance, L ≤ D. Raises ValueError with fewer than two rows."""
        if self._rows is None or self.count < 2:
            return root_of_covariance(self.covariance())
        centred = torch.cat(self._rows) - self._sum / self.count
        return centred.T / (self.count - 1) ** 0.5

    def _products_of_all(self) -> Tensor:
        if not self._rows:
            return self._products
        rows = torch.cat(self._rows)
        return rows.T @ rows

    def tensors(self) -> dict[str, Tensor]:
        """All values, to store them; with the rows where there are at most D, so that a distance from what was stored
        is the same to the last bit."""
        known = {"count": torch.tensor(self.count), "origin": self._origin, "sum": self._sum}
        return known | ({"rows": torch.cat(self._rows)} if self._rows else {"products": self._products_of_all()})

    @classmethod
    def from_tensors(cls, tensors: dict[str, Tensor]) -> "GaussianStatistics":
        """The statistics stored by `tensors`."""
        restored = cls(len(tensors["sum"]))
        restored.count = int(tensors["count"])
        restored._origin, restored._sum = tensors["origin"], tensors["sum"]
        if "rows" in tensors:
            restored._rows = [tensors["rows"]]
        else:
            restored._products, restored._rows = tensors["products"], None
        return restored


def frechet_distance(a: GaussianStatistics, b: GaussianStatistics) -> float:
    """|μ₁ − μ₂|² + tr(C₁ + C₂ − 2 (C₁ C₂)^½), the squared distance that FID reports; float64.

    The trace of the root is the sum of the roots of the eigenvalues of the symmetric Rᵀ C₂ R, for any R with
    R Rᵀ = C₁: for N < D samples an N x N matrix, which makes few samples fast.
    Raises ValueError if the dimensions differ or either has fewer than two rows.
    """
    if a.dim != b.dim:
        raise ValueError(f"statistics of {a.dim} and of {b.dim} dimensions cannot be compared")
    first, second = sorted((a, b), key=lambda side: (not side.keeps_rows, side.count))
    if not second.keeps_rows:
        return _distance(first.mean() - second.mean(), first.root(), second.covariance())
    root, other = first.root(), second.root()
    across = root.T @ other
    return _sum(first.mean() - second.mean(), root.square().sum() + other.square().sum(), across @ across.T)


def frechet_distance_of_moments(mean_1: Tensor, cov_1: Tensor, mean_2: Tensor, cov_2: Tensor) -> float:
    """The distance from means (D,) and covariances (D, D), float64."""
    return _distance(mean_1 - mean_2, root_of_covariance(cov_1), cov_2)


def _distance(apart: Tensor, root: Tensor, covariance: Tensor) -> float:
    """The distance from the means' difference (D,), a root (D, L) of one covariance, and the other (D, D)."""
    return _sum(apart, root.square().sum() + covariance.trace(), root.T @ covariance @ root)


def _sum(apart: Tensor, traces: Tensor, seen: Tensor) -> float:
    """The distance from the means' difference, the sum of both traces, and Rᵀ C R (root R of one, covariance C)."""
    return max(0.0, (apart.square().sum() + traces - 2 * sum_of_roots(seen)).item())


def root_of_covariance(matrix: Tensor) -> Tensor:
    """R (D, L) with R Rᵀ = the covariance (D, D); L counts the features that vary.

    Eigenvalues that rounding made negative count as 0.
    """
    live = matrix.diagonal() > 0  # features that are always zero are common, and solvers fail on them
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
    """The eigenvalues; if equal ones make the solver fail, those of the matrix with a diagonal of rounding size
    added."""
    try:
        return solve(matrix)
    except torch.linalg.LinAlgError:
        D = len(matrix)
        steps = torch.arange(1, D + 1, dtype=matrix.dtype) / D
        return solve(matrix + torch.diag(1e-13 * matrix.trace() * steps))
