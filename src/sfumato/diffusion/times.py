"""The times at which the model is trained: densities on (0, 1], sampled by inverting their distribution function.

The loss-history density samples more often where the loss is large. It warps the uniform number at which another
density is inverted, and returns the importance weight of each sample that keeps the expected loss that density's.
"""

import math
from dataclasses import dataclass
from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from sfumato.diffusion.process import time_of_index
from sfumato.diffusion.schedule import Schedule
from sfumato.schema import Schema


class DiscreteTimes(Schema):
    """Every training index with equal probability, as in the paper."""

    kind: Literal["discrete"] = "discrete"


class UniformTimes(Schema):
    """Uniform over (low, high], not restricted to the table."""

    kind: Literal["uniform"] = "uniform"
    low: float = Field(0.0, ge=0, lt=1)
    high: float = Field(1.0, gt=0, le=1)


class LogitNormalTimes(Schema):
    """sigmoid of a Gaussian: more weight on the middle times (Esser et al. 2024, section 3.1)."""

    kind: Literal["logit-normal"] = "logit-normal"
    mean: float = 0.0
    std: float = Field(1.0, gt=0)


FixedDensity = Annotated[DiscreteTimes | UniformTimes | LogitNormalTimes, Field(discriminator="kind")]


class LossHistoryTimes(Schema):
    """More often where the loss was large: each part of `base` in proportion to the root of its mean squared loss
    (Nichol & Dhariwal 2021, section 3.3). Each sample is weighted by base density / density, so that the expected loss
    stays that of `base`; what falls is its variance."""

    kind: Literal["loss-history"] = "loss-history"
    base: FixedDensity = DiscreteTimes()
    bins: int = Field(50, ge=2)
    """Parts of equal probability under `base` whose losses are recorded separately."""
    memory: int = Field(10, ge=1)
    """Samples in the running mean of a part; until every part has this many, times are sampled from `base`."""
    uniform_share: float = Field(0.1, gt=0, le=1)
    """This share of the samples is from `base`, so that no sample's weight exceeds 1 / uniform_share."""


TimeDensity = Annotated[DiscreteTimes | UniformTimes | LogitNormalTimes | LossHistoryTimes, Field(discriminator="kind")]


class LossHistory(nn.Module):
    """The running mean of the squared loss in each part of the density, as buffers: it is saved with the run's state.

    `mean_square` (bins,) float64; `count` (bins,) samples seen.
    """

    mean_square: Tensor
    count: Tensor

    def __init__(self, config: LossHistoryTimes) -> None:
        super().__init__()
        self.memory, self.uniform_share = config.memory, config.uniform_share
        self.register_buffer("mean_square", torch.zeros(config.bins, dtype=torch.float64))
        self.register_buffer("count", torch.zeros(config.bins, dtype=torch.long))

    def probabilities(self) -> Tensor:
        """The probability of each part, (bins,) float64, with sum 1; all equal until every part has had `memory`
        samples."""
        even = torch.full_like(self.mean_square, 1 / len(self.mean_square))
        root = self.mean_square.sqrt()
        if bool((self.count < self.memory).any()) or not bool(root.sum() > 0):
            return even
        return self.uniform_share * even + (1 - self.uniform_share) * root / root.sum()

    def warp(self, uniform: Tensor) -> tuple[Tensor, Tensor]:
        """Uniform numbers on [0, 1) redistributed by the probabilities of the parts, and the part of each; both
        (n,)."""
        probabilities = self.probabilities().to(uniform.device)
        bins = len(probabilities)
        above = probabilities.cumsum(0)
        part = torch.searchsorted(above, uniform, right=True).clamp(max=bins - 1)
        within = (uniform - (above[part] - probabilities[part])) / probabilities[part]
        return (part + within.clamp(0, 1 - 1e-12)) / bins, part

    @torch.no_grad()
    def update(self, part: Tensor, losses: Tensor) -> None:
        """Adds the losses (n,) of samples in the parts (n,), in any order; losses that are not finite are ignored."""
        part, losses = part.to(self.count.device), losses.double().to(self.count.device)
        part, losses = part[torch.isfinite(losses)], losses[torch.isfinite(losses)]
        counts = torch.zeros_like(self.count).index_add_(0, part, torch.ones_like(part))
        sums = torch.zeros_like(self.mean_square).index_add_(0, part, losses.square())
        seen = self.count.clamp(max=self.memory).double()
        new = counts.double()
        decay = torch.where(self.count >= self.memory, (1 - 1 / self.memory) ** new, seen / (seen + new).clamp(min=1))
        means = sums / new.clamp(min=1)
        self.mean_square.copy_(
            torch.where(counts > 0, decay * self.mean_square + (1 - decay) * means, self.mean_square)
        )
        self.count += counts


@dataclass(frozen=True)
class RandomTimes:
    """t (n,) in (0, 1], float64. With a loss history: the part each was sampled from, and base density / density."""

    t: Tensor
    part: Tensor | None = None
    importance: Tensor | None = None


def sample(
    density: TimeDensity,
    n: int,
    generator: torch.Generator,
    schedule: Schedule,
    stratified: bool = False,
    history: LossHistory | None = None,
) -> RandomTimes:
    """n random times on the generator's device. `history` is required by a loss-history density, else None.

    Stratified: one time in each of n slices of equal probability, in random order.
    """
    device = generator.device
    uniform = torch.rand(n, generator=generator, dtype=torch.float64, device=device)
    if stratified:
        slices = torch.randperm(n, generator=generator, device=device)
        uniform = (slices + uniform) / n
    if not isinstance(density, LossHistoryTimes):
        return RandomTimes(_inverse(density, uniform, schedule))
    if history is None:
        raise ValueError("a loss-history density requires its history")
    warped, part = history.warp(uniform)
    importance = 1 / (history.probabilities().to(device)[part] * len(history.count))
    return RandomTimes(_inverse(density.base, warped, schedule), part, importance)


def _inverse(density: FixedDensity, uniform: Tensor, schedule: Schedule) -> Tensor:
    """The times at which the density's distribution function (falling from 1 for kind uniform) has these values."""
    match density:
        case DiscreteTimes():
            index = (uniform * schedule.steps).floor().clamp(max=schedule.steps - 1)
            return time_of_index(index, schedule.steps)
        case UniformTimes():
            return density.high - (density.high - density.low) * uniform  # torch.rand is below 1: t is never 0
        case LogitNormalTimes():
            smallest = torch.finfo(torch.float64).tiny
            return torch.sigmoid(density.mean + density.std * torch.special.ndtri(uniform.clamp(min=smallest)))


def density(times: TimeDensity, t: Tensor) -> Tensor:
    """The density at times t in (0, 1], float64, of t's shape; of a loss history that of its base.

    The training indices count as uniform times: a sum over them stands for an integral.
    """
    t = t.to(torch.float64)
    match times:
        case LossHistoryTimes():
            return density(times.base, t)
        case DiscreteTimes():
            return torch.ones_like(t)
        case UniformTimes():
            inside = (t > times.low) & (t <= times.high)
            return inside.to(torch.float64) / (times.high - times.low)
        case LogitNormalTimes():
            inner = t.clamp(1e-12, 1 - 1e-12)
            place = (torch.logit(inner) - times.mean) / times.std
            return torch.exp(-0.5 * place.square()) / (math.sqrt(2 * math.pi) * times.std * inner * (1 - inner))
