"""DDPM's ancestral sampling and DDIM, for any spacing of the times."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from pydantic import Field
from torch import Tensor

from sfumato.diffusion.schedule import Schedule
from sfumato.errors import UserError
from sfumato.sampling.sampler import Denoise, Level, Noise, levels, noise_like
from sfumato.schema import Schema


class DDPMConfig(Schema):
    """Ancestral sampling (Ho et al. 2020, Algorithm 2), also over fewer than T steps."""

    kind: Literal["ddpm"] = "ddpm"
    variance: Literal["posterior", "forward"] = "posterior"
    """The noise of a step: the posterior's variance (the original's v_posterior 0) or the forward step's beta (1)."""
    temperature: float = Field(1.0, ge=0)


class DDIMConfig(Schema):
    """DDIM (Song et al. 2021, eq. 12); eta 0 is deterministic, eta 1 is DDPM."""

    kind: Literal["ddim"] = "ddim"
    eta: float = Field(0.0, ge=0, le=1)
    temperature: float = Field(1.0, ge=0)


def _forward_variance(now: Level, then: Level) -> float:
    return now.sigma**2 - (now.alpha / then.alpha * then.sigma) ** 2


@dataclass(frozen=True)
class DDPM:
    """x_s sampled from q(x_s | x_t, x0) with the expected clean latent as x0; noise is scaled by `temperature`."""

    variance: Literal["posterior", "forward"] = "posterior"
    temperature: float = 1.0

    def init(self) -> None:
        return None

    def step(
        self, denoise: Denoise, schedule: Schedule, x_t: Tensor, t: Tensor, s: Tensor, state: None, noise: Noise
    ) -> tuple[Tensor, None]:
        now, then = levels(schedule, t, s)
        forward = _forward_variance(now, then)
        ratio = (then.sigma / now.sigma) ** 2
        x_s = now.alpha / then.alpha * ratio * x_t + then.alpha * forward / now.sigma**2 * denoise(x_t, t)
        if then.sigma > 0 and self.temperature > 0:
            variance = forward * ratio if self.variance == "posterior" else forward
            x_s = x_s + math.sqrt(variance) * self.temperature * noise_like(noise, x_t)
        return x_s, None


@dataclass(frozen=True)
class DDIM:
    """The expected clean latent plus its noise, re-mixed for time s; a share `eta` of the noise is new.

    `project` replaces the expected clean latent after the noise was computed from it (the original's quantize_x0
    quantises it by the codebook). Raises UserError for eta outside [0, 1].
    """

    eta: float = 0.0
    temperature: float = 1.0
    project: Callable[[Tensor], Tensor] | None = None

    def __post_init__(self) -> None:
        if not 0 <= self.eta <= 1:
            raise UserError(f"eta is {self.eta:g}: choose it between 0 (deterministic) and 1 (as DDPM)")

    def init(self) -> None:
        return None

    def step(
        self, denoise: Denoise, schedule: Schedule, x_t: Tensor, t: Tensor, s: Tensor, state: None, noise: Noise
    ) -> tuple[Tensor, None]:
        now, then = levels(schedule, t, s)
        fresh = self.eta * math.sqrt(_forward_variance(now, then)) * then.sigma / now.sigma
        carried = math.sqrt(max(then.sigma**2 - fresh**2, 0.0)) / now.sigma
        x0 = denoise(x_t, t)
        clean = x0 if self.project is None else self.project(x0)
        x_s = then.alpha * clean + carried * (x_t - now.alpha * x0)
        if fresh > 0 and self.temperature > 0:
            x_s = x_s + fresh * self.temperature * noise_like(noise, x_t)
        return x_s, None
