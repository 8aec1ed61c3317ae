"""Guidance: wrappers that take denoise functions and give one.

All combine expected clean latents. For classifier-free guidance that is the same as the paper's combination of noise
predictions: at fixed x_t both are affine in each other, and the weights (s, 1 - s) add up to 1.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from sfumato.diffusion.process import broadcast
from sfumato.diffusion.schedule import Schedule
from sfumato.errors import UserError
from sfumato.sampling.sampler import Denoise

Pair = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]
"""(x_t, t) -> (conditional x0, null x0), from one doubled batch where that is faster."""

Combine = Callable[[Tensor, Tensor, Tensor | float], Tensor]
"""(conditional x0, null x0, scale) -> guided x0."""


def linear(conditional: Tensor, null: Tensor, scale: Tensor | float) -> Tensor:
    """null + scale · (conditional - null) (Ho & Salimans 2022); scale one number or (B,), 1 is off."""
    return null + broadcast(scale, null) * (conditional - null)


@dataclass(frozen=True)
class Rescaled:
    """Linear guidance, then each sample's spread brought back to the conditional one's (Lin et al. 2024, section 3.4).

    `amount` mixes the rescaled (1) with the plain result (0). The paper rescales the network's output; here it is x0.
    """

    amount: float = 0.7

    def __call__(self, conditional: Tensor, null: Tensor, scale: Tensor | float) -> Tensor:
        guided = linear(conditional, null, scale)
        axes = tuple(range(1, guided.dim()))
        ratio = conditional.std(axes, keepdim=True) / guided.std(axes, keepdim=True)
        return guided * (self.amount * ratio + (1 - self.amount))


@dataclass(frozen=True)
class Projected:
    """Adaptive projected guidance (Sadat et al. 2025) without its momentum, which would be memory hidden in a function.

    The guiding difference is shortened to the norm `limit` where it is longer, and its part along the conditional x0,
    which saturates pictures, is weighted by `parallel` (1 and an infinite limit: plain guidance).
    """

    parallel: float = 0.0
    limit: float = math.inf

    def __call__(self, conditional: Tensor, null: Tensor, scale: Tensor | float) -> Tensor:
        axes = tuple(range(1, conditional.dim()))
        difference = conditional - null
        if math.isfinite(self.limit):
            norm = difference.square().sum(axes, keepdim=True).sqrt()
            difference = difference * (self.limit / norm.clamp(min=1e-12)).clamp(max=1)
        length = conditional.square().sum(axes, keepdim=True).clamp(min=1e-12)
        along = (difference * conditional).sum(axes, keepdim=True) / length * conditional
        return conditional + (broadcast(scale, null) - 1) * (difference + (self.parallel - 1) * along)


def classifier_free(
    cond: Denoise,
    both: Pair,
    scale: Tensor | float,
    interval: tuple[float, float] = (0.0, 1.0),
    combine: Combine = linear,
) -> Denoise:
    """Classifier-free guidance; scale one number or one per sample (B,), 1 is off (the paper's s).

    Outside the interval of times (Kynkäänniemi et al. 2024), and everywhere if no scale differs from 1, only `cond` is
    called, at half the cost. Raises UserError for an interval that is not 0 <= low <= high <= 1.
    """
    low, high = _checked(interval)
    off = bool((torch.as_tensor(scale) == 1).all())

    def guided(x_t: Tensor, t: Tensor) -> Tensor:
        if off or not low <= float(t) <= high:
            return cond(x_t, t)
        conditional, null = both(x_t, t)
        return combine(conditional, null, scale)

    return guided


def _checked(interval: tuple[float, float]) -> tuple[float, float]:
    low, high = interval
    if not 0 <= low <= high <= 1:
        raise UserError(f"guidance interval is ({low:g}, {high:g}): give two times with 0 <= low <= high <= 1")
    return interval


def by_parts(
    cond: Denoise,
    all_of: Callable[[Tensor, Tensor], Sequence[Tensor]],
    scales: Sequence[float],
    interval: tuple[float, float] = (0.0, 1.0),
) -> Denoise:
    """Guidance with a scale for each of K conditions, given one after the other (Brooks et al. 2023, eq. 3).

    all_of(x_t, t) -> the K + 1 expected clean latents with none, the first, the first two ... of them; `cond` has all.
    The result is none + sum over k of scales[k] · (with k + 1 - with k). Equal scales are classifier-free guidance with
    that scale, scales of 1 are off. Raises UserError for an interval that is not 0 <= low <= high <= 1.
    """
    low, high = _checked(interval)
    off = all(scale == 1 for scale in scales)

    def guided(x_t: Tensor, t: Tensor) -> Tensor:
        if off or not low <= float(t) <= high:
            return cond(x_t, t)
        x0, *rest = found = all_of(x_t, t)
        for scale, before, after in zip(scales, found[:-1], rest, strict=True):
            x0 = x0 + scale * (after - before)
        return x0

    return guided


def autoguidance(
    good: Denoise, bad: Denoise, scale: Tensor | float, interval: tuple[float, float] = (0.0, 1.0)
) -> Denoise:
    """Away from a worse version of the same model (Karras et al. 2024): bad + scale · (good - bad); 1 is off."""

    def both(x_t: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        return good(x_t, t), bad(x_t, t)

    return classifier_free(good, both, scale, interval)


def toward(
    denoise: Denoise,
    schedule: Schedule,
    log_likelihood: Callable[[Tensor, Tensor], Tensor],
    scale: float,
    of: Literal["noisy", "clean"],
) -> Denoise:
    """Shifts the expected clean latent along the gradient of a log-likelihood: x0 + scale · sigma² / alpha · ∇ log p.

    of "noisy": log_likelihood(x_t, t) -> (B,) judges the noisy latent, as a classifier trained on noise does
    (Dhariwal & Nichol 2021, Algorithm 2). of "clean": it judges the expected clean latent, and the gradient runs
    through the denoiser (the paper's image guiding, appendix C). Gradients are taken even under torch.no_grad.
    """

    def guided(x_t: Tensor, t: Tensor) -> Tensor:
        alpha, sigma = (float(value) for value in schedule(t))
        if alpha == 0:
            return denoise(x_t, t)  # x_t says nothing of x0 yet, and the shift would be infinite
        with torch.enable_grad():
            leaf = x_t.detach().requires_grad_(True)
            x0 = denoise(leaf, t) if of == "clean" else None
            value = log_likelihood(leaf if x0 is None else x0, t)
            (gradient,) = torch.autograd.grad(value.sum(), leaf)
        x0 = denoise(x_t, t) if x0 is None else x0.detach()
        return x0 + scale * sigma**2 / alpha * gradient

    return guided


def corrected(denoise: Denoise, schedule: Schedule, correct: Callable[[Tensor, Tensor, Tensor], Tensor]) -> Denoise:
    """Edits the noise prediction, `correct(eps, x_t, t) -> eps`: the original's score corrector; alpha > 0."""

    def edited(x_t: Tensor, t: Tensor) -> Tensor:
        alpha, sigma = (float(value) for value in schedule(t))
        eps = (x_t - alpha * denoise(x_t, t)) / sigma
        return (x_t - sigma * correct(eps, x_t, t)) / alpha

    return edited
