"""DPM-Solver++ (Lu et al. 2022): the probability-flow ODE solved exactly except for the change of x0 along lambda.

x_s = (sigma_s / sigma_t) x_t + alpha_s ∫₀¹ h e^{-h(1-τ)} x0(τ) dτ,   h = lambda_s - lambda_t
"""

import math
from dataclasses import dataclass
from typing import Literal

from pydantic import Field
from torch import Tensor

from sfumato.diffusion.schedule import Schedule
from sfumato.errors import UserError
from sfumato.sampling.sampler import (
    Denoise,
    History,
    Level,
    Noise,
    exponential_moments,
    first_order,
    levels,
    noise_like,
)
from sfumato.sampling.sampler import level as level_at
from sfumato.schema import Schema


class DPM2MConfig(Schema):
    """Second-order multistep: one network call a step."""

    kind: Literal["dpmpp-2m"] = "dpmpp-2m"


class DPM3MConfig(Schema):
    """Third-order multistep: one network call a step."""

    kind: Literal["dpmpp-3m"] = "dpmpp-3m"


class DPM2SConfig(Schema):
    """Second-order single step: two network calls a step, no history."""

    kind: Literal["dpmpp-2s"] = "dpmpp-2s"


class DPM2MSDEConfig(Schema):
    """Second-order multistep for the SDE; eta 0 is deterministic."""

    kind: Literal["dpmpp-2m-sde"] = "dpmpp-2m-sde"
    eta: float = Field(1.0, ge=0, le=1)


def _extrapolated(x0: Tensor, history: History, now: Level, h: float) -> Tensor:
    """x0 at the middle of the step, on the line through the last two predictions; x0 itself without history."""
    if not history.predictions or math.isinf(h):
        return x0
    slope = 0.5 * h / (now.log_snr - history.log_snrs[0])
    return x0 + slope * (x0 - history.predictions[0])


@dataclass(frozen=True)
class DPM2M:
    """DPM-Solver++(2M), Algorithm 2; the last step, to sigma = 0, is of first order."""

    def init(self) -> History:
        return History()

    def step(
        self, denoise: Denoise, schedule: Schedule, x_t: Tensor, t: Tensor, s: Tensor, state: History, noise: Noise
    ) -> tuple[Tensor, History]:
        now, then = levels(schedule, t, s)
        x0 = denoise(x_t, t)
        middle = _extrapolated(x0, state, now, then.log_snr - now.log_snr)
        return first_order(x_t, middle, now, then), state.push(x0, now.log_snr, keep=1)


@dataclass(frozen=True)
class DPM2S:
    """DPM-Solver++(2S), Algorithm 1, with its intermediate point in the middle of the step in lambda."""

    def init(self) -> None:
        return None

    def step(
        self, denoise: Denoise, schedule: Schedule, x_t: Tensor, t: Tensor, s: Tensor, state: None, noise: Noise
    ) -> tuple[Tensor, None]:
        now, then = levels(schedule, t, s)
        x0 = denoise(x_t, t)
        if math.isinf(then.log_snr - now.log_snr):
            return first_order(x_t, x0, now, then), None
        m = schedule.time_of_log_snr(0.5 * (now.log_snr + then.log_snr))
        x_m = first_order(x_t, x0, now, level_at(schedule, m))
        return first_order(x_t, denoise(x_m, m), now, then), None


@dataclass(frozen=True)
class DPM3M:
    """Third-order multistep: the parabola through the last three predictions, integrated exactly.

    Steps without two earlier predictions, and the last one to sigma = 0, are of lower order.
    """

    def init(self) -> History:
        return History()

    def step(
        self, denoise: Denoise, schedule: Schedule, x_t: Tensor, t: Tensor, s: Tensor, state: History, noise: Noise
    ) -> tuple[Tensor, History]:
        now, then = levels(schedule, t, s)
        h = then.log_snr - now.log_snr
        x0 = denoise(x_t, t)
        remembered = state.push(x0, now.log_snr, keep=2)
        if len(state.predictions) < 2 or math.isinf(h):
            return first_order(x_t, _extrapolated(x0, state, now, h), now, then), remembered
        before, earlier = ((lam - now.log_snr) / h for lam in state.log_snrs)
        first = (state.predictions[0] - x0) / before
        second = ((state.predictions[1] - state.predictions[0]) / (earlier - before) - first) / earlier
        m0, m1, m2 = exponential_moments(h, 3)
        # Newton's form x0 + first·τ + second·τ(τ - before), with τ = 0 now and 1 at the end of the step
        integral = m0 * x0 + m1 * first + (m2 - before * m1) * second
        return then.sigma / now.sigma * x_t + then.alpha * integral, remembered


@dataclass(frozen=True)
class DPM2MSDE:
    """SDE-DPM-Solver++(2M): damps the carried noise by e^{-eta h} and adds new noise for the rest.

    Raises UserError for eta outside [0, 1].
    """

    eta: float = 1.0

    def __post_init__(self) -> None:
        if not 0 <= self.eta <= 1:
            raise UserError(f"eta is {self.eta:g}: choose it between 0 (deterministic) and 1 (all noise is new)")

    def init(self) -> History:
        return History()

    def step(
        self, denoise: Denoise, schedule: Schedule, x_t: Tensor, t: Tensor, s: Tensor, state: History, noise: Noise
    ) -> tuple[Tensor, History]:
        now, then = levels(schedule, t, s)
        h = then.log_snr - now.log_snr
        x0 = denoise(x_t, t)
        middle = _extrapolated(x0, state, now, h)
        damped = self.eta * h if self.eta > 0 else 0.0
        x_s = then.sigma / now.sigma * math.exp(-damped) * x_t - then.alpha * math.expm1(-h - damped) * middle
        if damped > 0 and then.sigma > 0:
            x_s = x_s + then.sigma * math.sqrt(-math.expm1(-2 * damped)) * noise_like(noise, x_t)
        return x_s, state.push(x0, now.log_snr, keep=1)
