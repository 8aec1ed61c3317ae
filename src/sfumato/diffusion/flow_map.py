"""Flow maps on the straight path, for models of any schedule and prediction, and the losses that distil one.

On the path z_t = (1 - t) x + t eps (t = 1: noise) a model's flow has the velocity v(z_t, t). The flow map moves along
it from t to any earlier r in one step, z_r = z_t - (t - r) u(z_t, t, r), where u is the mean velocity in between;
u(z_t, t, t) = v(z_t, t) (Geng et al. 2025, "Mean Flows", eq. 3-4).

x_t = alpha x + sigma eps of any schedule is on that path after a change of variables: z = x_t / (alpha + sigma) at
t = sigma / (alpha + sigma), which falls from t = 1 to 0 as sigma / alpha does. Where a schedule's noisiest step still
contains some x, its path begins below 1. Below, `t` and `r` are times on the path; times of a schedule are `time`.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from sfumato.diffusion.prediction import PredictionKind, check_prediction, convert
from sfumato.diffusion.process import broadcast
from sfumato.diffusion.schedule import Schedule

MeanVelocity = Callable[[Tensor, Tensor, Tensor], Tensor]
"""(z_t (B, ...), t (B,), r (B,)) -> u(z_t, t, r) (B, ...), with r <= t."""

DIFFERENCE = 0.005
"""Half the distance of the two points of the central difference; its error falls with the square, rounding grows."""


@dataclass(frozen=True)
class Path:
    """The straight path of a model with this schedule and this kind of prediction.

    Raises UserError for a prediction that does not determine the velocity at the schedule's noisiest time.
    """

    schedule: Schedule
    prediction: PredictionKind

    def __post_init__(self) -> None:
        check_prediction(self.prediction, self.schedule)

    def of_time(self, time: Tensor | float) -> Tensor:
        """The path's t at times of the schedule: float64, of their shape, 0 at 0."""
        alpha, sigma = self.schedule(time)
        return sigma / (alpha + sigma)

    def to_time(self, t: Tensor | float) -> Tensor:
        """The schedule's times at the path's t, float64; the inverse of `of_time`, 1 for t beyond `noisiest`."""
        return self.schedule.time_of_log_snr(-torch.logit(torch.as_tensor(t, dtype=torch.float64)))

    @property
    def noisiest(self) -> float:
        """The path's t at the schedule's noisiest time."""
        return float(self.of_time(1.0))

    @property
    def first(self) -> float:
        """The path's t at the first index of the schedule, the least noisy one that a network was trained on."""
        return float(self.of_time(1 / self.schedule.steps))

    def length(self, time: Tensor | float) -> Tensor:
        """alpha + sigma: x_t = (alpha + sigma) z."""
        alpha, sigma = self.schedule(time)
        return alpha + sigma

    def velocity(self, prediction: Tensor, x_t: Tensor, time: Tensor | float) -> Tensor:
        """The velocity eps - x on the path (B, ...) that a prediction implies for x_t (B, ...) at times of the
        schedule, one or (B,)."""
        alpha, sigma = self.schedule(time)
        return convert(self.prediction, "flow", prediction, x_t, alpha, sigma)


def mapped(z_t: Tensor, t: Tensor | float, r: Tensor | float, u: Tensor) -> Tensor:
    """z_r = z_t - (t - r) u, (B, ...); t, r one number or (B,)."""
    return z_t - broadcast(t - r, z_t) * u


def mean_velocity(z_t: Tensor, z_r: Tensor, t: Tensor, r: Tensor) -> Tensor:
    """The u (B, ...) that maps z_t to z_r, for r < t: the target of regression on trajectories."""
    return (z_t - z_r) / broadcast(t - r, z_t)


def pseudo_huber(u: Tensor, target: Tensor, width: float = 0.05) -> Tensor:
    """sqrt(mean (u - target)² + width²) - width of each sample (B,): quadratic below `width`, linear above.

    The root keeps the few pairs with large errors, at strong guidance, from dominating (Song & Dhariwal 2024, section
    3.3, with the mean in place of the sum).
    """
    square = (u - target).float().square().flatten(1).mean(1)
    return (square + width * width).sqrt() - width


@torch.no_grad()
def total_derivative(
    u: MeanVelocity, z_t: Tensor, t: Tensor, r: Tensor, v: Tensor, noisiest: float = 1.0, step: float = DIFFERENCE
) -> Tensor:
    """du/dt along the flow, v · ∇u + ∂u/∂t at fixed r, (B, ...), by a central difference without gradients.

    z_t, v (B, ...); t, r (B,). Near `noisiest`, and where t - step would be before r, the difference is one-sided.
    Dropout must be off: independent masks divided by the step would be nothing but noise.
    """
    above, below = (t + step).clamp(max=noisiest), torch.maximum(t - step, r)
    # where r = t = noisiest both points coincide: their difference is zero, and its weight t - r too
    distance = (above - below).clamp(min=step / 2)
    ahead = u(z_t + broadcast(above - t, z_t) * v, above, r)
    behind = u(z_t + broadcast(below - t, z_t) * v, below, r)
    return (ahead - behind) / broadcast(distance, z_t)


def mean_flow_target(v: Tensor, derivative: Tensor, t: Tensor, r: Tensor) -> Tensor:
    """v - (t - r) du/dt, which a mean velocity satisfies (Geng et al. 2025, eq. 6), without gradients."""
    return (v - broadcast(t - r, v) * derivative).detach()


def composed_target(v: Tensor, rest: Tensor, share: Tensor) -> Tensor:
    """The mean velocity (B, ...) of a step with velocity v over `share` (B,) of the time, followed by `rest`, without
    gradients. As the share goes to 0 it becomes the identity of `mean_flow_target` (Geng et al. 2025, eq. 6)."""
    part = broadcast(share, v)
    return (part * v + (1 - part) * rest).detach()


def adaptive(u: Tensor, target: Tensor, offset: float = 0.01) -> Tensor:
    """mean (u - target)² / (itself, without gradients, + offset) of each sample (B,) (Geng et al. 2025, eq. 22)."""
    square = (u - target).float().square().flatten(1).mean(1)
    return square / (square.detach() + offset)


def log_uniform(low: float, high: float, uniform: Tensor) -> Tensor:
    """Uniform numbers of [0, 1) as numbers from low to high whose logarithm is uniform."""
    return torch.exp(math.log(low) + (math.log(high) - math.log(low)) * uniform)
