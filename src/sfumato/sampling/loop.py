"""The one sampling loop: any sampler, any denoise function, any grid of times."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

from sfumato.diffusion.schedule import Schedule
from sfumato.sampling.sampler import Denoise, Noise, Sampler, State, as_time


@dataclass(frozen=True)
class Step:
    """The argument of a callback after each step: step `index` of `total` from time t to s returned x.

    x0 is the expected clean latent at the beginning of the step, from the first call of the denoise function.
    """

    index: int
    total: int
    t: Tensor
    s: Tensor
    x: Tensor
    x0: Tensor


class _FirstCall:
    """Forwards calls and keeps the first result."""

    def __init__(self, denoise: Denoise) -> None:
        self.denoise = denoise
        self.first: Tensor | None = None

    def __call__(self, x_t: Tensor, t: Tensor) -> Tensor:
        x0 = self.denoise(x_t, t)
        if self.first is None:
            self.first = x0
        return x0


def sample(
    sampler: Sampler[State],
    schedule: Schedule,
    denoise: Denoise,
    x: Tensor,
    grid: Tensor,
    noise: Noise,
    callback: Callable[[Step], None] | None = None,
    begin_step: Callable[[Tensor, Tensor], None] | None = None,
) -> Tensor:
    """Samples from x (B, ...) at time grid[0] to time grid[-1] and returns the result.

    grid: (S + 1,) float64 times, falling, S steps. x is noise where grid[0] = 1, or a clean latent noised to grid[0].
    The gradient mode is not changed. `begin_step(t, s)` is called before every step, for state along the trajectory
    (`sfumato.sampling.guidance.Trajectory`), `callback` after it.

    Raises ValueError for a grid of fewer than two times.
    """
    if grid.dim() != 1 or len(grid) < 2:
        raise ValueError(f"a grid is a vector of at least two times, not of shape {tuple(grid.shape)}")
    times = [as_time(t) for t in grid]
    total = len(times) - 1
    state = sampler.init()
    for index, (t, s) in enumerate(pairwise(times)):
        if begin_step is not None:
            begin_step(t, s)
        recorded = _FirstCall(denoise)
        x, state = sampler.step(recorded, schedule, x, t, s, state, noise)
        if callback is not None:
            callback(Step(index, total, t, s, x, x if recorded.first is None else recorded.first))
    return x


def equally_far(latents: Sequence[Tensor], shown: int) -> list[int]:
    """Indices along a path, both ends included, that divide its length into about equal parts, to be shown.

    At most `shown`: fewer where one step is longer than a part.
    """
    moved = [float((b - a).float().norm()) for a, b in pairwise(latents)]
    length = torch.tensor([0.0, *moved], dtype=torch.float64).cumsum(0)
    targets = torch.linspace(0, 1, shown, dtype=torch.float64) * length[-1]
    nearest = (length[None] - targets[:, None]).abs().argmin(dim=1).tolist()
    return sorted({0, len(latents) - 1, *nearest})
