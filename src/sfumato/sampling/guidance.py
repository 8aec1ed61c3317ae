"""Guidance: wrappers that take denoise functions and give one.

All combine expected clean latents. For classifier-free guidance that is the same as the paper's combination of noise
predictions: at fixed x_t both are affine in each other, and the weights (s, 1 - s) add up to 1.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from sfumato.diffusion.process import broadcast
from sfumato.errors import UserError
from sfumato.sampling.sampler import Denoise

Pair = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]
"""(x_t, t) -> (conditional x0, null x0), from one doubled batch where that is faster."""

Combine = Callable[[Tensor, Tensor, Tensor | float], Tensor]
"""(conditional x0, null x0, scale) -> guided x0."""


def linear(conditional: Tensor, null: Tensor, scale: Tensor | float) -> Tensor:
    """null + scale · (conditional - null) (Ho & Salimans 2022); scale one number or (B,), 1 is off."""
    return null + broadcast(scale, null) * (conditional - null)


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
    low, high = interval
    if not 0 <= low <= high <= 1:
        raise UserError(f"guidance interval is ({low:g}, {high:g}): give two times with 0 <= low <= high <= 1")
    off = bool((torch.as_tensor(scale) == 1).all())

    def guided(x_t: Tensor, t: Tensor) -> Tensor:
        if off or not low <= float(t) <= high:
            return cond(x_t, t)
        conditional, null = both(x_t, t)
        return combine(conditional, null, scale)

    return guided
