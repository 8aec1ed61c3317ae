"""The forward process: times, adding noise, and the posterior of a step back."""

from dataclasses import dataclass

import torch
from torch import Tensor

from sfumato.diffusion.schedule import SNAP, Schedule


def broadcast(values: Tensor | float, like: Tensor) -> Tensor | float:
    """Values reshaped to multiply `like` (B, ...): one number (float or 0-d) or one number per sample (B,).

    Per-sample values are cast and moved to `like`; a single CPU number stays as it is, since it multiplies a tensor of
    any device and type without a copy. Raises ValueError for any other shape, unless it already has `like`'s number of
    axes.
    """
    if isinstance(values, float | int) or (values.dim() == 0 and values.device.type == "cpu"):
        return values
    values = values.to(like.dtype).to(like.device)
    if values.dim() in (0, like.dim()):
        return values
    if values.dim() == 1 and len(values) in (1, len(like)):
        return values.reshape(-1, *[1] * (like.dim() - 1))
    raise ValueError(
        f"values of shape {tuple(values.shape)} are not one per sample of a batch of shape {tuple(like.shape)}"
    )


def time_of_index(index: Tensor | int, steps: int) -> Tensor:
    """The time (i + 1) / T of training index i in 0 … T-1; float64."""
    return (torch.as_tensor(index, dtype=torch.float64) + 1) / steps


def network_time(t: Tensor | float, steps: int) -> Tensor:
    """The network's time input: t·T - 1, float64, exactly i at the time of index i."""
    position = torch.as_tensor(t, dtype=torch.float64) * steps
    nearest = position.round()
    return torch.where((position - nearest).abs() < SNAP, nearest, position) - 1


def timestep_like(t: Tensor, steps: int, like: Tensor) -> Tensor:
    """Network time (B,), float32, of a batch like (B, ...) at times t, 0-d or (B,).

    A single time on the CPU is filled in on the device; a copy would make the host wait.
    """
    timestep = network_time(t, steps)
    if timestep.dim() == 0 and timestep.device.type == "cpu":
        return torch.full((len(like),), timestep.item(), dtype=torch.float32, device=like.device)
    return timestep.float().to(like.device).expand(len(like))


def add_noise(schedule: Schedule, x0: Tensor, noise: Tensor, t: Tensor) -> Tensor:
    """x_t = alpha · x0 + sigma · noise; x0, noise (B, ...), t 0-d or (B,) (Ho et al. 2020, eq. 4)."""
    alpha, sigma = schedule(t)
    return broadcast(alpha, x0) * x0 + broadcast(sigma, x0) * noise


@dataclass(frozen=True)
class Posterior:
    """q(x_s | x_t, x0): a Gaussian of this mean (B, ...) and variance (0-d or (B,), float64)."""

    mean: Tensor
    variance: Tensor


def forward_variance(schedule: Schedule, t: Tensor, s: Tensor) -> Tensor:
    """Var(x_t | x_s) for s < t, float64: beta_i when s and t are neighbours of the table."""
    alpha_t, sigma_t = schedule(t)
    alpha_s, sigma_s = schedule(s)
    return sigma_t.square() - (alpha_t / alpha_s * sigma_s).square()


def posterior(schedule: Schedule, x0: Tensor, x_t: Tensor, t: Tensor, s: Tensor) -> Posterior:
    """The posterior of a step back from t to any s < t (Ho et al. 2020, eq. 6-7, for arbitrary spacing)."""
    alpha_t, sigma_t = schedule(t)
    alpha_s, sigma_s = schedule(s)
    forward = forward_variance(schedule, t, s)
    weight_x0 = alpha_s * forward / sigma_t.square()
    weight_x_t = alpha_t / alpha_s * (sigma_s / sigma_t).square()
    mean = broadcast(weight_x0, x0) * x0 + broadcast(weight_x_t, x_t) * x_t
    return Posterior(mean, forward * (sigma_s / sigma_t).square())


def prior_bits(schedule: Schedule, x0: Tensor) -> Tensor:
    """KL(q(x_1 | x0) || N(0, 1)) in bits per dimension, (B,): the information about the latent left in x_1."""
    alpha, sigma = schedule(torch.ones((), dtype=torch.float64))
    mean_squared = (alpha * x0.double()).square().flatten(1).mean(1)
    return (
        0.5 * (mean_squared + sigma.square() - 1 - 2 * sigma.log()) / torch.log(torch.tensor(2.0, dtype=torch.float64))
    )
