"""Denoise functions known in closed form: what a perfect network would answer, for data whose distribution is known.

Latents are (B, ...), flattened to (B, D) inside; parameters are float64.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from sfumato.diffusion.schedule import Schedule

Denoise = Callable[[Tensor, Tensor], Tensor]


def gaussian(schedule: Schedule, mean: float, std: float) -> Denoise:
    """Data N(mean, std²) in every coordinate; std 0 is a single point."""

    def denoise(x_t: Tensor, t: Tensor) -> Tensor:
        alpha, sigma = (float(value) for value in schedule(t))
        total = (alpha * std) ** 2 + sigma**2
        return mean + alpha * std**2 / total * (x_t - alpha * mean)

    return denoise


def gaussian_flow(schedule: Schedule, mean: float, std: float, x_t: Tensor, t: Tensor, s: Tensor) -> Tensor:
    """Where the probability-flow equation takes x_t (at t) by time s, for the data of `gaussian`: exact."""
    alpha_t, sigma_t = schedule(t)
    alpha_s, sigma_s = schedule(s)
    spread_t = ((alpha_t * std) ** 2 + sigma_t**2).sqrt()
    spread_s = ((alpha_s * std) ** 2 + sigma_s**2).sqrt()
    return alpha_s * mean + spread_s / spread_t * (x_t - alpha_t * mean)


def mixture(schedule: Schedule, means: Tensor, std: float, weights: Tensor) -> Denoise:
    """A mixture of K Gaussians with means (K, D), weights (K,) and one standard deviation for all coordinates."""

    def denoise(x_t: Tensor, t: Tensor) -> Tensor:
        alpha, sigma = (float(value) for value in schedule(t))
        x = x_t.flatten(1)
        total = (alpha * std) ** 2 + sigma**2
        distance = (x[:, None] - alpha * means).square().sum(-1)
        share = torch.softmax(torch.log(weights) - distance / (2 * total), dim=-1)
        centre = means + alpha * std**2 / total * (x[:, None] - alpha * means)
        return (share[..., None] * centre).sum(1).reshape(x_t.shape)

    return denoise


def dataset(schedule: Schedule, points: Tensor) -> Denoise:
    """A dataset of N points (N, D), each equally likely: the network that has memorised them."""
    return mixture(schedule, points, 0.0, torch.full((len(points),), 1 / len(points), dtype=torch.float64))


def three_hills(schedule: Schedule) -> Denoise:
    """A mixture of three in the plane, uneven enough that nothing cancels."""
    means = torch.tensor([[1.0, 0.5], [-0.8, 0.3], [0.1, -1.2]], dtype=torch.float64)
    return mixture(schedule, means, 0.3, torch.tensor([0.5, 0.3, 0.2], dtype=torch.float64))


def no_noise(shape: object) -> Tensor:
    """For deterministic samplers: taking noise is a failure."""
    raise AssertionError("a deterministic sampler took noise")
