"""Kernel distance against the definition's double sums."""

from itertools import product

import pytest
import torch
from torch import Tensor

from sfumato.evaluation import kernel
from sfumato.evaluation.kernel import kernel_distance, squared_mmd


def features(n: int, seed: int) -> Tensor:
    return torch.randn(n, 5, generator=torch.Generator().manual_seed(seed))


def direct(x: Tensor, y: Tensor) -> float:
    def k(a: Tensor, b: Tensor) -> float:
        return (float((a.double() * b.double()).sum()) / 5 + 1) ** 3

    N, M = len(x), len(y)
    within_x = sum(k(x[i], x[j]) for i, j in product(range(N), repeat=2) if i != j) / (N * (N - 1))
    within_y = sum(k(y[i], y[j]) for i, j in product(range(M), repeat=2) if i != j) / (M * (M - 1))
    return within_x + within_y - 2 * sum(k(a, b) for a, b in product(x, y)) / (N * M)


def test_the_estimate_is_the_definition_s(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernel, "BLOCK", 3)
    x, y = features(7, 0), features(8, 1) + 0.5
    assert squared_mmd(x, y) == pytest.approx(direct(x, y), rel=1e-12)


def test_subsets_of_one_distribution_scatter_about_zero() -> None:
    found = kernel_distance(features(400, 2), features(300, 3), torch.Generator().manual_seed(0), 50, 100)
    assert (found.subsets, found.subset_size) == (50, 100)
    assert abs(found.mean) < 2 * found.std
    shifted = kernel_distance(features(400, 2) + 1, features(300, 3), torch.Generator().manual_seed(0), 50, 100)
    assert shifted.mean > 5 * shifted.std


def test_the_same_generator_gives_the_same_number_and_small_sets_shrink_the_subsets() -> None:
    x, y = features(30, 4), features(9, 5)
    first, second = (kernel_distance(x, y, torch.Generator().manual_seed(1), 10) for _ in range(2))
    assert first == second
    assert first.subset_size == 9
    whole = kernel_distance(y, x[:9], torch.Generator().manual_seed(1), 10)
    assert (whole.subsets, whole.std) == (1, 0.0)
    assert whole.mean == pytest.approx(direct(y, x[:9]))


def test_one_row_is_refused() -> None:
    with pytest.raises(ValueError, match="two rows"):
        kernel_distance(features(1, 0), features(5, 0), torch.Generator())
