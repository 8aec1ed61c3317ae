"""VIV against its closed form and a simulated regression; the fits against covariances that are known."""

import math

import pytest
import torch
from torch import Tensor

from sfumato import rng
from sfumato.evaluation.latent_difficulty import (
    effective_rank,
    full_variances,
    irreducible_loss,
    kronecker_variances,
    latent_difficulty,
    normalised,
    within_classes,
)
from sfumato.evaluation.latents import beyond, spectrum


def gaussian(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=rng.generator(seed, "test", 0), dtype=torch.float64)


def test_it_is_the_loss_that_the_best_linear_predictor_leaves() -> None:
    """The variance of v given x_t, integrated over t numerically."""
    variances = torch.tensor([0.05, 0.4, 1.0, 3.0], dtype=torch.float64)
    t = (torch.arange(20_000, dtype=torch.float64) + 0.5) / 20_000
    covariance = t[:, None] - (1 - t[:, None]) * variances  # of v = ε − x with x_t
    left = (1 + variances) - covariance.square() / ((1 - t[:, None]).square() * variances + t[:, None].square())
    assert irreducible_loss(variances) == pytest.approx(left.mean().item(), rel=1e-4)


def test_white_noise_is_the_hardest() -> None:
    found = latent_difficulty(gaussian(6000, 2, 4, 4))
    assert found.fit == "full"
    assert found.viv == pytest.approx(math.pi / 2, rel=0.01)
    assert found.effective_rank == pytest.approx(1, abs=0.01)


def test_scale_and_offset_of_a_channel_change_nothing() -> None:
    x = gaussian(300, 3, 4, 4)
    scaled = x * torch.tensor([5.0, 0.1, 1.0])[:, None, None] + torch.tensor([1.0, -3.0, 0.0])[:, None, None]
    assert latent_difficulty(scaled).viv == pytest.approx(latent_difficulty(x).viv, rel=1e-6)


def test_the_full_fit_is_numpys_covariance() -> None:
    x = gaussian(500, 6) @ gaussian(6, 6, seed=1)
    x = x - x.mean(dim=0)
    assert torch.allclose(full_variances(x, 499), torch.linalg.eigvalsh(torch.cov(x.T)))


def test_the_kronecker_fit_finds_both_factors() -> None:
    channels, positions = torch.tensor([4.0, 0.25]).double(), torch.logspace(-1, 1, 9).double()
    x = gaussian(4000, 2, 9) * channels.sqrt()[:, None] * positions.sqrt()
    turn_channels, turn_positions = (torch.linalg.qr(gaussian(n, n, seed=n)).Q for n in (2, 9))
    x = turn_channels @ x @ turn_positions
    found = kronecker_variances(x - x.mean(dim=0), 3999).sort().values
    assert torch.allclose(found, torch.outer(channels, positions).flatten().sort().values, rtol=0.1)


def test_three_factors_are_found_too() -> None:
    parts = [torch.tensor([2.0, 0.5]), torch.tensor([1.0, 0.1, 4.0]), torch.tensor([3.0, 1.0])]
    a, b, c = (each.double() for each in parts)
    variances = a[:, None, None] * b[:, None] * c
    x = gaussian(4000, 2, 3, 2) * variances.sqrt()
    found = kronecker_variances(x - x.mean(dim=0), 3999).sort().values
    assert torch.allclose(found, variances.flatten().sort().values, rtol=0.1)


def test_large_latents_are_fitted_by_rows_and_columns() -> None:
    found = latent_difficulty(gaussian(24, 2, 40, 40))
    assert found.fit == "kronecker"
    assert found.viv == pytest.approx(math.pi / 2, rel=0.05)


def test_both_fits_agree_where_the_covariance_is_a_product(monkeypatch: pytest.MonkeyPatch) -> None:
    x = gaussian(3000, 2, 4, 4) * torch.logspace(-1, 1, 16).double().reshape(4, 4)
    full = latent_difficulty(x)
    monkeypatch.setattr("sfumato.evaluation.latent_difficulty.FULL_DIMENSIONS", 8)
    product = latent_difficulty(x)
    assert (full.fit, product.fit) == ("full", "kronecker")
    assert product.viv == pytest.approx(full.viv, rel=0.02)
    assert product.effective_rank == pytest.approx(full.effective_rank, rel=0.05)


def test_few_latents_are_fitted_by_a_product() -> None:
    found = latent_difficulty(gaussian(40, 4, 8, 8))
    assert found.fit == "kronecker"
    assert found.viv == pytest.approx(math.pi / 2, rel=0.1)


def test_smooth_latents_are_easier_than_white_ones() -> None:
    white = gaussian(600, 2, 8, 8)
    smooth = torch.nn.functional.avg_pool2d(white, 3, stride=1, padding=1)
    assert latent_difficulty(smooth).viv < 0.8 * latent_difficulty(white).viv


def test_a_class_explains_its_mean() -> None:
    labels = torch.arange(900) % 3
    means = 4 * gaussian(3, 2, 2, 2)
    x = gaussian(900, 2, 2, 2) + means[labels]
    assert latent_difficulty(x, labels).viv < 0.7 * latent_difficulty(x).viv
    inside = within_classes(x, labels)
    assert all(inside[labels == k].mean(dim=0).abs().max() < 1e-12 for k in range(3))


def test_as_many_classes_as_latents_are_refused() -> None:
    with pytest.raises(ValueError, match="3 latents are too few"):
        latent_difficulty(gaussian(3, 1, 2, 2), torch.arange(3))


def test_latents_that_never_vary_have_nothing_to_learn() -> None:
    found = latent_difficulty(torch.ones(20, 2, 4, 4))
    assert (found.viv, found.effective_rank) == (0, 0)
    half = normalised(torch.stack([torch.ones(50, 4, 4).double(), gaussian(50, 4, 4)], dim=1))
    assert half[:, 0].abs().max() == 0


def test_effective_rank_counts_equal_directions() -> None:
    assert effective_rank(torch.tensor([1.0, 1.0, 0.0, 0.0])) == pytest.approx(0.5)


def test_energy_beyond_a_diagonal() -> None:
    x = torch.zeros(1, 1, 8, 8, dtype=torch.float64)
    x[0, 0, 1, 2] = 3.0  # u + v = 3
    x[0, 0, 5, 4] = 4.0  # u + v = 9
    spectra = x[0].square()
    assert beyond(spectra, 0.1) == pytest.approx(1)
    assert beyond(spectra, 0.25) == pytest.approx(16 / 25)  # the bound is 3.5
    assert beyond(spectra, 0.65) == 0  # 9.1
    assert beyond(spectrum(gaussian(200, 1, 8, 8)), 0.5) == pytest.approx(28 / 64, abs=0.02)
