"""DDIM inversion of a latent to the noise that generates it, and interpolation of noises."""

from itertools import pairwise

import torch
from torch import Tensor

from sfumato.diffusion.schedule import Schedule
from sfumato.errors import UserError
from sfumato.sampling.sampler import Denoise, as_time, level


def invert(denoise: Denoise, schedule: Schedule, x: Tensor, grid: Tensor, refinements: int = 0) -> Tensor:
    """The latent at grid[0] from which DDIM (eta 0) over the same grid leads to x (B, ...), the latent at grid[-1].

    grid: (S + 1,) falling times. DDIM runs backwards with the noise prediction at the earlier, known end of each
    step (Song et al. 2021, section 4.3); `refinements` times that is repeated with the prediction at the later end, a
    fixed-point iteration that makes the inversion exact where it converges (Pan et al. 2023). Costs S · (1 +
    refinements) network calls. Raises UserError for negative refinements.
    """
    if refinements < 0:
        raise UserError(f"refinements is {refinements}: choose 0 or more")
    times = [as_time(t) for t in grid.flip(0)]
    for s, t in pairwise(times):
        then, now = level(schedule, s), level(schedule, t)
        # at t = 0 x contains no noise; the network at the first noisy time is the best approximation
        at = then if then.sigma > 0 else now
        x_t = x
        for attempt in range(1 + refinements):
            if attempt > 0:
                at = now
            x0 = denoise(x_t, t if at is now else s)
            if at.alpha == 0:  # pure noise: all of x that is not the expected clean latent
                x_t = (x - then.alpha * x0) / then.sigma if then.sigma > 0 else x_t
                continue
            eps = (x_t - at.alpha * x0) / at.sigma
            x_t = now.alpha / then.alpha * (x - then.sigma * eps) + now.sigma * eps
        x = x_t
    return x


def slerp(a: Tensor, b: Tensor, weight: Tensor | float) -> Tensor:
    """The point at the fraction `weight` of the arc from a to b (B, ...), per sample; weight a number or
    (B,).

    This preserves the norm of noises. Nearly parallel vectors are interpolated linearly.
    """
    axes = tuple(range(1, a.dim()))
    w = torch.as_tensor(weight, dtype=a.dtype, device=a.device).reshape(-1, *[1] * (a.dim() - 1))
    norms = a.square().sum(axes, keepdim=True).sqrt() * b.square().sum(axes, keepdim=True).sqrt()
    angle = torch.arccos(((a * b).sum(axes, keepdim=True) / norms.clamp(min=1e-12)).clamp(-1, 1))
    sine = torch.sin(angle)
    parallel = sine < 1e-4
    safe = torch.where(parallel, torch.ones_like(sine), sine)
    weight_a = torch.where(parallel, 1 - w, torch.sin((1 - w) * angle) / safe)
    weight_b = torch.where(parallel, w, torch.sin(w * angle) / safe)
    return weight_a * a + weight_b * b
