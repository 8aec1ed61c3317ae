"""Guidance: wrappers that combine denoise functions into one.

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

STIFF = 0.1
"""Where x0 follows a change of x_t by less than this share, the data determine it, and image guidance is weaker."""

Pair = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]
"""(x_t, t) -> (conditional x0, null x0), in one doubled batch where that is faster."""

Combine = Callable[[Tensor, Tensor, Tensor | float], Tensor]
"""(conditional x0, null x0, scale) -> guided x0."""


def linear(conditional: Tensor, null: Tensor, scale: Tensor | float) -> Tensor:
    """null + scale · (conditional - null) (Ho & Salimans 2022); scale one number or (B,), 1 is off."""
    return null + broadcast(scale, null) * (conditional - null)


@dataclass(frozen=True)
class Rescaled:
    """Guidance by `inner`, then each sample's standard deviation rescaled to the conditional one's (Lin et al. 2024,
    sec. 3.4).

    `amount` mixes the rescaled (1) with the plain result (0). The paper rescales the network's output; here it is x0.
    """

    amount: float = 0.7
    inner: Combine = linear

    def __call__(self, conditional: Tensor, null: Tensor, scale: Tensor | float) -> Tensor:
        guided = self.inner(conditional, null, scale)
        axes = tuple(range(1, guided.dim()))
        ratio = conditional.std(axes, keepdim=True) / guided.std(axes, keepdim=True)
        return guided * (self.amount * ratio + (1 - self.amount))


class Momentum:
    """The running sum of guidance differences, difference + weight · sum: the memory of one trajectory of one window.

    Sadat et al. 2025 use a negative weight, about -0.5, which reduces the component along earlier steps. The sum
    advances once a step, in the step's first call; further calls of a step, as in samplers of higher order, use the sum
    of the earlier steps as the first one did, and do not change it. So all slopes of a step are of the same guided
    field.
    """

    def __init__(self, weight: float) -> None:
        self.weight = weight
        self.sum: Tensor | None = None
        self._before: Tensor | None = None
        self._advanced = False

    def begin_step(self) -> None:
        """Later calls belong to the next step."""
        self._before, self._advanced = self.sum, False

    def forget(self) -> None:
        """Restarts the trajectory, as when RePaint goes back up."""
        self.sum = self._before = None
        self._advanced = False

    def __call__(self, difference: Tensor) -> Tensor:
        """The sum with one more difference (B, ...)."""
        total = difference if self._before is None else difference + self.weight * self._before
        if not self._advanced:
            self.sum, self._advanced = total, True
        return total


class Trajectory:
    """The memory of one trajectory of a batch: a momentum for each window and guidance that has one, and the time
    `end` at which the present step ends, which a student's network is given.

    `sfumato.sampling.loop.sample` calls `begin_step` before every step.
    """

    def __init__(self) -> None:
        self.momenta: list[Momentum] = []
        self.end: Tensor | None = None

    def momentum(self, weight: float) -> Momentum | None:
        """Adds a momentum to this trajectory; None for a weight of 0."""
        if weight == 0:
            return None
        self.momenta.append(Momentum(weight))
        return self.momenta[-1]

    def begin_step(self, t: Tensor, s: Tensor) -> None:
        """The next calls belong to the step from time t to s; a step to a later time restarts the trajectory."""
        self.end = s
        for momentum in self.momenta:
            if float(s) > float(t):
                momentum.forget()
            momentum.begin_step()


@dataclass(frozen=True)
class Projected:
    """Adaptive projected guidance (Sadat et al. 2025, Algorithm 1).

    The guiding difference goes through `momentum`, is clipped to the norm `limit` (the paper's r),
    and its part along the conditional x0, which saturates images, is weighted by `parallel` (the paper's eta; 1, no
    momentum and an infinite limit: plain guidance). A momentum has state: use one per window and trajectory.
    """

    parallel: float = 0.0
    limit: float = math.inf
    momentum: Momentum | None = None

    def __call__(self, conditional: Tensor, null: Tensor, scale: Tensor | float) -> Tensor:
        axes = tuple(range(1, conditional.dim()))
        difference = conditional - null
        if self.momentum is not None:
            difference = self.momentum(difference)
        if math.isfinite(self.limit):
            norm = difference.square().sum(axes, keepdim=True).sqrt()
            difference = difference * (self.limit / norm.clamp(min=1e-12)).clamp(max=1)
        length = conditional.square().sum(axes, keepdim=True).clamp(min=1e-12)
        along = (difference * conditional).sum(axes, keepdim=True) / length * conditional
        return conditional + (broadcast(scale, null) - 1) * (difference + (self.parallel - 1) * along)


def check_interval(interval: tuple[float, float]) -> None:
    """Raises UserError for an interval of times that is not 0 <= low <= high <= 1."""
    low, high = interval
    if not 0 <= low <= high <= 1:
        raise UserError(f"guidance interval is ({low:g}, {high:g}): give two times with 0 <= low <= high <= 1")


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
    check_interval(interval)
    low, high = interval
    off = bool((torch.as_tensor(scale) == 1).all())

    def guided(x_t: Tensor, t: Tensor) -> Tensor:
        if off or not low <= float(t) <= high:
            return cond(x_t, t)
        conditional, null = both(x_t, t)
        return combine(conditional, null, scale)

    return guided


def by_parts(
    cond: Denoise,
    all_of: Callable[[Tensor, Tensor], Sequence[Tensor]],
    scales: Sequence[float],
    interval: tuple[float, float] = (0.0, 1.0),
) -> Denoise:
    """Guidance with a scale for each of K conditions, added one after the other (Brooks et al. 2023, eq. 3).

    all_of(x_t, t) -> the K + 1 expected clean latents with none, the first, the first two ... of them; `cond` has all.
    The result is none + sum over k of scales[k] · (with k + 1 - with k). Equal scales are classifier-free guidance with
    that scale, scales of 1 are off. Raises UserError for an interval that is not 0 <= low <= high <= 1.
    """
    check_interval(interval)
    low, high = interval
    off = all(scale == 1 for scale in scales)

    def guided(x_t: Tensor, t: Tensor) -> Tensor:
        if off or not low <= float(t) <= high:
            return cond(x_t, t)
        x0, *rest = nested = all_of(x_t, t)
        for scale, before, after in zip(scales, nested[:-1], rest, strict=True):
            x0 = x0 + scale * (after - before)
        return x0

    return guided


def autoguidance(
    good: Denoise,
    bad: Denoise,
    scale: Tensor | float,
    interval: tuple[float, float] = (0.0, 1.0),
    combine: Combine = linear,
) -> Denoise:
    """Guidance away from a worse version of the same model (Karras et al. 2024): bad + scale · (good - bad); 1 is
    off."""

    def both(x_t: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        return good(x_t, t), bad(x_t, t)

    return classifier_free(good, both, scale, interval, combine)


def toward(
    denoise: Denoise,
    schedule: Schedule,
    log_likelihood: Callable[[Tensor, Tensor], Tensor],
    scale: float,
    of: Literal["noisy", "clean"],
) -> Denoise:
    """Shifts the expected clean latent along the gradient of a log-likelihood: x0 + scale · sigma² / alpha · ∇ log p.

    of "noisy": log_likelihood(x_t, t) -> (B,) is a function of the noisy latent, as of a classifier trained on noise
    (Dhariwal & Nichol 2021, Algorithm 2). of "clean": it is a function of the expected clean latent, and the
    gradient goes through the denoiser (the paper's image guidance, appendix C). Gradients are computed even under
    torch.no_grad.
    """

    def guided(x_t: Tensor, t: Tensor) -> Tensor:
        alpha, sigma = (float(value) for value in schedule(t))
        if alpha == 0:
            return denoise(x_t, t)  # x_t does not depend on x0 yet, and the shift would be infinite
        with torch.enable_grad():
            leaf = x_t.detach().requires_grad_(True)
            x0 = denoise(leaf, t) if of == "clean" else None
            value = log_likelihood(leaf if x0 is None else x0, t)
            (gradient,) = torch.autograd.grad(value.sum(), leaf)
        x0 = denoise(x_t, t) if x0 is None else x0.detach()
        return x0 + scale * sigma**2 / alpha * gradient

    return guided


def toward_image(denoise: Denoise, loss: Callable[[Tensor], Tensor], scale: float) -> Denoise:
    """Moves the expected clean latent down a loss: the paper's image guidance (appendix C) with an adaptive step.

    The direction is the paper's, the gradient with respect to x_t, through the denoiser. Its length is scale times the
    step that would bring the loss to zero, if it were linear (Polyak's step): the same scale works for any size of
    image, decoder and loss. Where x_t hardly changes x0 in that direction, since there are no data, the step shrinks to
    zero (see STIFF). Gradients are computed even under torch.no_grad.

    loss: expected clean latents (B, ...) -> (B,), at least 0, and 0 where the target is reached.
    """

    def guided(x_t: Tensor, t: Tensor) -> Tensor:
        with torch.enable_grad():
            leaf = x_t.detach().requires_grad_(True)
            x0 = denoise(leaf, t)
            value = loss(x0)
            steepest, direction = torch.autograd.grad(value.sum(), [x0, leaf])
        axes = tuple(range(1, x_t.dim()))
        # how far x0 follows, in the gradient's direction; negative where the denoiser reverses it
        follows = (steepest * direction).sum(axes).abs()
        slope = (follows + STIFF * steepest.square().sum(axes)).clamp(min=1e-20)
        return x0.detach() - scale * broadcast(value.detach() / slope, x_t) * direction

    return guided


def corrected(denoise: Denoise, schedule: Schedule, correct: Callable[[Tensor, Tensor, Tensor], Tensor]) -> Denoise:
    """Edits the noise prediction, `correct(eps, x_t, t) -> eps`: the original's score corrector; alpha > 0."""

    def edited(x_t: Tensor, t: Tensor) -> Tensor:
        alpha, sigma = (float(value) for value in schedule(t))
        eps = (x_t - alpha * denoise(x_t, t)) / sigma
        return (x_t - sigma * correct(eps, x_t, t)) / alpha

    return edited
