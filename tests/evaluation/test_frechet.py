"""Fréchet distance: closed forms of Gaussians, streaming, few rows."""

import pytest
import torch
from torch import Tensor

from sfumato.evaluation.frechet import GaussianStatistics, frechet_distance, frechet_distance_of_moments

G = torch.Generator().manual_seed(0)


def rows(n: int, d: int, seed: int) -> Tensor:
    g = torch.Generator().manual_seed(seed)
    return torch.randn(n, d, generator=g, dtype=torch.float64) @ torch.randn(d, d, generator=g, dtype=torch.float64)


def test_commuting_covariances_have_a_closed_form() -> None:
    q, _ = torch.linalg.qr(torch.randn(6, 6, dtype=torch.float64, generator=G))
    a, b = torch.tensor([0.0, 1, 2, 3, 4, 9.0]).double(), torch.tensor([5.0, 1, 0, 4, 1, 1.0]).double()
    shift = torch.arange(6).double()
    found = frechet_distance_of_moments(shift * 0, q * a @ q.T, shift, q * b @ q.T)
    expected = (a.sqrt() - b.sqrt()).square().sum() + shift.square().sum()
    assert found == pytest.approx(expected.item(), rel=1e-7)  # a zero eigenvalue costs half the digits


def test_any_covariances_agree_with_the_roots_of_the_product_s_eigenvalues() -> None:
    a, b = GaussianStatistics.of(rows(50, 7, 1)), GaussianStatistics.of(rows(40, 7, 2) + 0.3)
    product = torch.linalg.eigvals(a.covariance() @ b.covariance()).real.clamp_min(0).sqrt().sum()
    expected = (a.mean() - b.mean()).square().sum() + a.covariance().trace() + b.covariance().trace() - 2 * product
    assert frechet_distance(a, b) == pytest.approx(expected.item(), rel=1e-9)
    assert frechet_distance(b, a) == pytest.approx(expected.item(), rel=1e-9)
    assert frechet_distance(a, a) == pytest.approx(0, abs=1e-9)


def test_batches_give_the_statistics_of_the_whole_far_from_zero() -> None:
    x = rows(31, 5, 3) + 1e6
    parted = GaussianStatistics.of(x.split(4))
    torch.testing.assert_close(parted.mean(), x.mean(dim=0), rtol=1e-14, atol=0)
    torch.testing.assert_close(parted.covariance(), torch.cov(x.T), rtol=1e-7, atol=0)
    again = GaussianStatistics.from_tensors(parted.tensors())
    assert again.count == 31
    assert torch.equal(again.covariance(), parted.covariance())


def test_fewer_rows_than_dimensions_is_still_a_distance() -> None:
    x, y = rows(4, 12, 4), rows(5, 12, 5)
    a, b = GaussianStatistics.of(x), GaussianStatistics.of(y)
    root = torch.linalg.svdvals((x - x.mean(0)) @ (y - y.mean(0)).T).sum() / 12**0.5
    expected = (a.mean() - b.mean()).square().sum() + a.covariance().trace() + b.covariance().trace() - 2 * root
    assert frechet_distance(a, b) == pytest.approx(expected.item(), rel=1e-6)


@pytest.mark.parametrize(("n", "m"), [(9, 11), (9, 200), (200, 9), (24, 25), (25, 30)])
def test_few_rows_take_a_shorter_way_to_the_same_distance(n: int, m: int, monkeypatch: pytest.MonkeyPatch) -> None:
    d, solved = 24, []
    x, y = rows(n, d, 6), rows(m, d, 7) + 0.5
    x[:, 3] = 0.0  # a feature that never fires
    a, b = GaussianStatistics.of(x.split(5)), GaussianStatistics.of(y.split(7))
    torch.testing.assert_close(a.covariance(), torch.cov(x.T), rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(a.root() @ a.root().T, torch.cov(x.T), rtol=1e-9, atol=1e-9)
    expected = frechet_distance_of_moments(x.mean(0), torch.cov(x.T), y.mean(0), torch.cov(y.T))
    solve, decompose = torch.linalg.eigvalsh, torch.linalg.eigh
    monkeypatch.setattr(torch.linalg, "eigvalsh", lambda matrix: solved.append(len(matrix)) or solve(matrix))
    monkeypatch.setattr(torch.linalg, "eigh", lambda matrix: solved.append(len(matrix)) or decompose(matrix))
    for one, other in ((a, b), (b, a)):
        assert frechet_distance(one, other) == pytest.approx(expected, rel=1e-6)
    kept = [count for count in (n, m) if count <= d]
    assert solved == [min(kept)] * 2 if kept else len(solved) == 4
    again = GaussianStatistics.from_tensors(a.tensors())
    assert frechet_distance(again, b) == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("n", [5, 40])
def test_a_distance_from_stored_statistics_is_the_same_to_the_last_bit(n: int) -> None:
    """Few rows, and more than dimensions: a card does not depend on whether the data's features were cached."""
    g = torch.Generator().manual_seed(n)
    real, other = (torch.randn(n, 12, generator=g).split(3) for _ in range(2))
    fresh, samples = GaussianStatistics.of(real), GaussianStatistics.of(other)
    stored = GaussianStatistics.from_tensors({name: t.clone() for name, t in fresh.tensors().items()})
    assert stored.keeps_rows == fresh.keeps_rows == (n <= 12)
    assert frechet_distance(stored, samples) == frechet_distance(fresh, samples)


def test_what_cannot_be_a_distribution_is_refused() -> None:
    statistics = GaussianStatistics(3)
    with pytest.raises(ValueError, match="two rows"):
        frechet_distance(GaussianStatistics.of(torch.rand(2, 3)), GaussianStatistics.of(torch.rand(1, 3)))
    with pytest.raises(ValueError, match="not finite"):
        statistics.update(torch.tensor([[0.0, float("nan"), 1.0]]))
    with pytest.raises(ValueError, match=r"\(B, 3\)"):
        statistics.update(torch.rand(2, 4))
    with pytest.raises(ValueError, match="3 and of 4"):
        frechet_distance(GaussianStatistics(3), GaussianStatistics(4))
