"""How hard a latent space is for stage 2, estimated before stage 2 is trained, from a Gaussian fit of its latents.

For a Gaussian with variance λ along one direction, on the path x_t = (1 − t) x + t ε, the part of the velocity
v = ε − x that x_t does not determine has the variance λ / ((1 − t)² λ + t²); its mean over t in [0, 1] is (π/2) √λ.
VIV is the mean of that over all directions: the loss of flow matching that no network can go below if the latents are
Gaussian. At equal size and variance, a space with a few strong directions has a lower VIV than one whose variance is
spread evenly, and is easier to learn ("Diffusing in the Right Space", arXiv 2606.03578).
"""

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

FULL_DIMENSIONS = 1536
"""The largest latent for which the whole covariance is fitted; its eigenvalues take about a second."""
EXAMPLES_PER_DIMENSION = 4
"""The whole covariance needs this many latents for each of its dimensions; with fewer its eigenvalues spread out."""
POSITIONS = 1024
"""Up to this many positions have one factor of a Kronecker covariance; more are split into rows and columns."""
ROUNDS = 5
"""Of the alternating fit of a Kronecker covariance."""
RIDGE = 1e-6
"""Added to a factor before it is inverted, times its mean variance."""

Fit = Literal["full", "kronecker"]


@dataclass(frozen=True)
class LatentDifficulty:
    """Measures of a latent space by a Gaussian fit.

    Attributes:
        viv: time-averaged irreducible loss of flow matching, in [0, π/2] for latents of unit variance; π/2 is white
            noise.
        effective_rank: exp of the entropy of the normalised eigenvalues, divided by their number; in (0, 1].
        fit: the covariance that was fitted.
        latents: how many were used.
    """

    viv: float
    effective_rank: float
    fit: Fit
    latents: int


def latent_difficulty(latents: Tensor, labels: Tensor | None = None) -> LatentDifficulty:
    """VIV and effective rank of latents (N, C, h, w), which are normalised per channel first.

    Args:
        latents: raw or model latents, N >= 2.
        labels: (N,) long; given, the means of the classes are removed, as a model conditioned on the class can do.

    Raises:
        ValueError: there are fewer than two latents beside one for each class.
    """
    N, C, h, w = latents.shape
    freedom = N - (1 if labels is None else len(labels.unique()))
    if freedom < 1:
        raise ValueError(f"{N} latents are too few for the covariance within their classes")
    x = within_classes(normalised(latents.double()), labels)
    D = C * h * w
    if D <= FULL_DIMENSIONS and freedom >= EXAMPLES_PER_DIMENSION * D:
        fit: Fit = "full"
        variances = full_variances(x.flatten(1), freedom)
    else:
        fit = "kronecker"
        variances = kronecker_variances(x.flatten(2) if h * w <= POSITIONS else x, freedom)
    return LatentDifficulty(irreducible_loss(variances), effective_rank(variances), fit, N)


def irreducible_loss(variances: Tensor) -> float:
    """(π/2) · mean √λ over the variances (D,) of a Gaussian along its principal axes."""
    return (math.pi / 2 * variances.clamp_min(0).sqrt().mean()).item()


def effective_rank(variances: Tensor) -> float:
    """exp(entropy of λ / Σλ) / D, in (0, 1]; 1 if all directions vary equally (Roy, Vetterli 2007); 0 if none does."""
    total = variances.clamp_min(0).sum()
    if total == 0:
        return 0.0
    share = variances.clamp_min(0) / total
    return (torch.special.entr(share).sum().exp() / len(variances)).item()


def normalised(latents: Tensor) -> Tensor:
    """(N, C, h, w) with zero mean and unit variance per channel; a channel that never varies becomes 0."""
    std, mean = torch.std_mean(latents, dim=(0, 2, 3), keepdim=True, correction=0)
    return (latents - mean) / torch.where(std > 0, std, torch.inf)


def within_classes(x: Tensor, labels: Tensor | None) -> Tensor:
    """x (N, …) minus the mean of its class, of all where there are no labels."""
    if labels is None:
        return x - x.mean(dim=0)
    classes, index = labels.unique(return_inverse=True)
    sums = x.new_zeros(len(classes), *x.shape[1:]).index_add_(0, index, x)
    counts = index.bincount().to(x).reshape(-1, *[1] * (x.dim() - 1))
    return x - (sums / counts)[index]


def full_variances(x: Tensor, freedom: int) -> Tensor:
    """The eigenvalues (D,) of the covariance of centred x (N, D), whose divisor is `freedom`."""
    return torch.linalg.eigvalsh(x.T @ x / freedom)


def kronecker_variances(x: Tensor, freedom: int) -> Tensor:
    """The eigenvalues (D,) of a covariance A ⊗ B ⊗ … fitted to centred x (N, a, b, …), with its total variance.

    One factor for each axis; they are fitted in turn by maximum likelihood, which needs far fewer examples than the
    whole covariance (Dutilleul 1999).
    """
    sizes = x.shape[1:]
    total = x.square().sum() / freedom
    if total == 0:
        return x.new_zeros(sizes.numel())
    factors = [torch.eye(size).to(x) for size in sizes]
    for _ in range(ROUNDS):
        for axis in range(len(sizes)):
            factors[axis] = _factor(x, factors, axis) / (freedom * sizes.numel() / sizes[axis])
    products = x.new_ones(1)
    for factor in factors:
        products = torch.outer(products, torch.linalg.eigvalsh(factor).clamp_min(0)).flatten()
    return products * (total / products.sum())


def _factor(x: Tensor, factors: list[Tensor], axis: int) -> Tensor:
    """The sum over the examples of x times x along one axis, whitened by the factors of the others."""
    white = x
    for other, factor in enumerate(factors):
        if other != axis:
            rows = white.movedim(other + 1, -2)
            white = torch.linalg.solve(_ridged(factor), rows).movedim(-2, other + 1)
    return x.movedim(axis + 1, 0).flatten(1) @ white.movedim(axis + 1, 0).flatten(1).T


def _ridged(covariance: Tensor) -> Tensor:
    size = len(covariance)
    return covariance + RIDGE * covariance.diagonal().mean() * torch.eye(size).to(covariance)
