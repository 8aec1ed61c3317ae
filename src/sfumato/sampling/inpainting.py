"""Keeping a known region while sampling the rest: wrappers around any sampler."""

from dataclasses import dataclass
from typing import Generic, Literal

import torch
from torch import Tensor

from sfumato.diffusion.process import add_noise
from sfumato.diffusion.schedule import Schedule
from sfumato.errors import UserError
from sfumato.sampling.grids import MOST_STEPS
from sfumato.sampling.sampler import Denoise, Noise, Sampler, State, level, noise_like


@dataclass(frozen=True, eq=False)
class KnownRegion(Generic[State]):
    """Replaces the kept region by the known latent, with new noise, at every step.

    known (B, C, h, w) or broadcastable; keep (B, 1, h, w) with 1 = keep, 0 = generate, values between blend. The
    original's DDIM and PLMS replace before each step ("before"), its DDPM after it, with the noise level at the
    beginning of the step ("after"). `ends_clean` inserts the known latent itself at t = 0.

    A step to a later time (see `with_jumps`) adds the noise up to that time and resets the sampler's state.
    """

    sampler: Sampler[State]
    known: Tensor
    keep: Tensor
    order: Literal["before", "after"] = "before"
    ends_clean: bool = False

    def init(self) -> State:
        return self.sampler.init()

    def step(
        self, denoise: Denoise, schedule: Schedule, x_t: Tensor, t: Tensor, s: Tensor, state: State, noise: Noise
    ) -> tuple[Tensor, State]:
        if float(s) > float(t):
            return _noise_up(schedule, x_t, t, s, noise), self.init()
        if self.order == "before":
            x_t = self._replace(schedule, x_t, t, noise)
        x_s, state = self.sampler.step(denoise, schedule, x_t, t, s, state, noise)
        if self.order == "after":
            x_s = self._replace(schedule, x_s, t, noise)
        if self.ends_clean and float(s) == 0:
            x_s = self.keep.to(x_s) * self.known.to(x_s) + (1 - self.keep.to(x_s)) * x_s
        return x_s, state

    def _replace(self, schedule: Schedule, x: Tensor, t: Tensor, noise: Noise) -> Tensor:
        keep, known = self.keep.to(x), self.known.to(x)
        return keep * add_noise(schedule, known, noise_like(noise, x), t) + (1 - keep) * x


def _noise_up(schedule: Schedule, x_t: Tensor, t: Tensor, later: Tensor, noise: Noise) -> Tensor:
    """A sample from q(x_later | x_t)."""
    now, up = level(schedule, t), level(schedule, later)
    ratio = up.alpha / now.alpha
    return ratio * x_t + (up.sigma**2 - (ratio * now.sigma) ** 2) ** 0.5 * noise_like(noise, x_t)


def with_jumps(grid: Tensor, length: int, repeats: int) -> Tensor:
    """A grid that, every `length` steps, goes back up as many steps, so that each stretch is sampled `repeats` times.

    RePaint's resampling (Lugmayr et al. 2022): the generated region adapts to the kept one. The last stretch, which
    may be shorter, is repeated as the others are. For `KnownRegion` only, since plain samplers cannot step up.

    Raises:
        UserError: for a length or a number of repeats below 1, or more than MOST_STEPS steps in all.
    """
    if length < 1 or repeats < 1:
        raise UserError(f"jumps of length {length} repeated {repeats} times: both must be at least 1")
    steps = len(grid) - 1
    if steps * (2 * repeats - 1) > MOST_STEPS:
        raise UserError(
            f"jumps of length {length} repeated {repeats} times make about {steps * (2 * repeats - 1)} steps of "
            f"{steps}: give fewer repeats, so that there are at most {MOST_STEPS}"
        )
    path = [grid[:1]]
    for start in range(0, steps, length):
        stretch = grid[start : min(start + length, steps) + 1]
        path.extend([stretch[1:], *[stretch.flip(0)[1:], stretch[1:]] * (repeats - 1)])
    return torch.cat(path)
