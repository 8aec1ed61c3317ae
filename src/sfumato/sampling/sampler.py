"""The contract of a sampler, and the numbers that every step needs.

A step goes from x_t to x_s, t now and s next (t > s >= 0). Its coefficients are Python floats, computed in float64 on
the CPU and applied to the latent in its own type, so a step neither loses precision nor waits for the device. A
sampler's state between steps is an argument and a result.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol, TypeVar

import torch
from torch import Tensor

from sfumato.diffusion.schedule import Schedule

Noise = Callable[[Sequence[int]], Tensor]
"""Gaussian noise of a shape (B, ...), with one generator per sample, so that no sample depends on the batch."""

Denoise = Callable[[Tensor, Tensor], Tensor]
"""(x_t, t) -> expected clean x; t is a 0-d float64 tensor on the CPU."""

State = TypeVar("State")


class Sampler(Protocol[State]):
    """One step from noise towards the latent."""

    def init(self) -> State:
        """The state before the first step."""
        ...

    def step(
        self, denoise: Denoise, schedule: Schedule, x_t: Tensor, t: Tensor, s: Tensor, state: State, noise: Noise
    ) -> tuple[Tensor, State]:
        """x_s (B, ...) from x_t (B, ...), and the state for the next step; t, s: 0-d float64, t > s >= 0."""
        ...


@dataclass(frozen=True)
class Level:
    """A point of the schedule as floats; log_snr = log(alpha / sigma) is inf at t = 0 and -inf where alpha is 0."""

    alpha: float
    sigma: float
    log_snr: float

    @property
    def noise_ratio(self) -> float:
        """sigma / alpha: the noise level of x / alpha, which is EDM's and k-diffusion's sigma."""
        return self.sigma / self.alpha if self.alpha > 0 else math.inf


def level(schedule: Schedule, t: Tensor) -> Level:
    """The schedule at time t (0-d)."""
    alpha, sigma = schedule(t)
    return Level(float(alpha), float(sigma), float(schedule.log_snr(t)))


def levels(schedule: Schedule, t: Tensor, s: Tensor) -> tuple[Level, Level]:
    """The levels at t (now) and s (next); raises ValueError unless t > s."""
    if not float(t) > float(s) >= 0:
        raise ValueError(f"a step goes from a later to an earlier time, not from {float(t):g} to {float(s):g}")
    return level(schedule, t), level(schedule, s)


def noise_like(noise: Noise, like: Tensor) -> Tensor:
    """Noise of the latent's shape, type and device."""
    return noise(tuple(like.shape)).to(like)


def first_order(x_t: Tensor, x0: Tensor, now: Level, then: Level) -> Tensor:
    """The step that is exact if the expected clean latent x0 stays constant: DDIM, and Euler's rule in x / alpha.

    Well defined from alpha = 0 (where it mixes noise and x0) and to sigma = 0 (where it gives x0).
    """
    h = then.log_snr - now.log_snr
    return then.sigma / now.sigma * x_t - then.alpha * math.expm1(-h) * x0


def exponential_moments(h: float, n: int) -> list[float]:
    """M_k = ∫₀¹ h e^{-h(1-τ)} τ^k dτ for k < n: the contribution of each power of a polynomial x0(τ) to a step of
    length h in lambda.

    By series for small h, where the recursion M_k = 1 - (k / h) M_{k-1} would lose digits.
    """
    if h < 1:
        return [
            sum((-1) ** j * h ** (j + 1) * math.factorial(k) / math.factorial(k + j + 1) for j in range(20))
            for k in range(n)
        ]
    moments = [-math.expm1(-h)]
    for k in range(1, n):
        moments.append(1 - k / h * moments[-1])
    return moments


@dataclass(frozen=True)
class History:
    """The predictions x0 of earlier steps, newest first, each with its lambda."""

    predictions: tuple[Tensor, ...] = ()
    log_snrs: tuple[float, ...] = ()

    def push(self, x0: Tensor, log_snr: float, keep: int) -> "History":
        """The history with one more prediction; at most `keep` remain, and none with lambda = -inf, which no polynomial
        fits."""
        if math.isinf(log_snr):
            return self
        return History((x0, *self.predictions)[:keep], (log_snr, *self.log_snrs)[:keep])


def as_time(t: Tensor | float) -> Tensor:
    """A time as a 0-d float64 CPU tensor, as denoise functions and schedules require."""
    return torch.as_tensor(t, dtype=torch.float64, device="cpu")
