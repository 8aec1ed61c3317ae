"""Euler, Heun and the stochastic sampler of EDM (Karras et al. 2022), in x / alpha with noise level sigma / alpha."""

import math
from dataclasses import dataclass
from typing import Literal

from pydantic import Field
from torch import Tensor

from sfumato.diffusion.schedule import Schedule
from sfumato.errors import UserError
from sfumato.sampling.sampler import Denoise, Level, Noise, first_order, level, levels, noise_like
from sfumato.schema import Schema

MAX_CHURN = math.sqrt(2) - 1
"""Above this a step would add more noise than x_t contains (Karras et al. 2022, Algorithm 2)."""


class EulerConfig(Schema):
    """First order: the same step as DDIM with eta 0."""

    kind: Literal["euler"] = "euler"


class HeunConfig(Schema):
    """Second order, two network calls a step (Karras et al. 2022, Algorithm 1)."""

    kind: Literal["heun"] = "heun"


class EDMConfig(Schema):
    """Heun's steps with noise added before each (Karras et al. 2022, Algorithm 2)."""

    kind: Literal["edm"] = "edm"
    churn: float = Field(0.2, ge=0, le=MAX_CHURN)
    """gamma: the noise level rises by this fraction before a step; the paper's S_churn divided by the steps."""
    churn_min: float = Field(0.05, ge=0)
    churn_max: float = Field(50.0, gt=0)
    """Noise is added at noise levels sigma / alpha between these two (the paper's S_min, S_max)."""
    noise_scale: float = Field(1.003, gt=0)
    """The paper's S_noise."""


def _heun(denoise: Denoise, x_t: Tensor, t: Tensor, s: Tensor, now: Level, then: Level) -> Tensor:
    x0 = denoise(x_t, t)
    x_s = first_order(x_t, x0, now, then)
    if now.alpha == 0 or then.sigma == 0:
        return x_s
    slope = (x_t / now.alpha - x0) / now.noise_ratio
    slope_s = (x_s / then.alpha - denoise(x_s, s)) / then.noise_ratio
    return then.alpha * (x_t / now.alpha + (then.noise_ratio - now.noise_ratio) / 2 * (slope + slope_s))


@dataclass(frozen=True)
class Euler:
    """Euler's rule."""

    def init(self) -> None:
        return None

    def step(
        self, denoise: Denoise, schedule: Schedule, x_t: Tensor, t: Tensor, s: Tensor, state: None, noise: Noise
    ) -> tuple[Tensor, None]:
        now, then = levels(schedule, t, s)
        return first_order(x_t, denoise(x_t, t), now, then), None


@dataclass(frozen=True)
class Heun:
    """The mean of the slopes at both ends; first order to sigma = 0 and from alpha = 0."""

    def init(self) -> None:
        return None

    def step(
        self, denoise: Denoise, schedule: Schedule, x_t: Tensor, t: Tensor, s: Tensor, state: None, noise: Noise
    ) -> tuple[Tensor, None]:
        now, then = levels(schedule, t, s)
        return _heun(denoise, x_t, t, s, now, then), None


@dataclass(frozen=True)
class EDM:
    """Adds noise up to a time later than t, at most t = 1, then takes Heun's step down to s.

    Raises UserError for churn outside [0, √2 - 1].
    """

    churn: float = 0.2
    churn_min: float = 0.05
    churn_max: float = 50.0
    noise_scale: float = 1.003

    def __post_init__(self) -> None:
        if not 0 <= self.churn <= MAX_CHURN:
            raise UserError(f"churn is {self.churn:g}: choose it between 0 (deterministic) and {MAX_CHURN:.3f}")

    def init(self) -> None:
        return None

    def step(
        self, denoise: Denoise, schedule: Schedule, x_t: Tensor, t: Tensor, s: Tensor, state: None, noise: Noise
    ) -> tuple[Tensor, None]:
        now, then = levels(schedule, t, s)
        if self.churn > 0 and self.churn_min <= now.noise_ratio <= self.churn_max:
            later = schedule.time_of_log_snr(-math.log(now.noise_ratio * (1 + self.churn)))
            up = level(schedule, later)
            if up.noise_ratio > now.noise_ratio and up.alpha > 0:
                added = math.sqrt(up.noise_ratio**2 - now.noise_ratio**2) * self.noise_scale
                x_t = up.alpha / now.alpha * x_t + up.alpha * added * noise_like(noise, x_t)
                t, now = later, up
        return _heun(denoise, x_t, t, s, now, then), None
