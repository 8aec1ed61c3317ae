"""The estimate of a training run: derived from its configuration, measured, and forecast."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from sfumato.estimate.measure import Timing
from sfumato.estimate.memory import Memory
from sfumato.estimate.scaling import Sizes
from sfumato.estimate.work import Work

V100 = 5.7e12
"""Operations a second of the paper's V100, 36 % of its float32 peak: so the 178,000 steps of 1,200 with the U-Net of
the class-conditional ImageNet model are the 271 V100-days of its Table 18."""
A100 = 2.2 * V100
"""The paper's conversion: an A100 day is 2.2 V100 days."""
H100 = 0.4 * 989e12
"""40 % of the card's dense bfloat16 peak, the utilisation of a well-tuned training run."""
H100_WATTS = 700
START_SECONDS = 5.0
"""Imports, opening files, compiling the first kernel: not measured, relevant only for short runs."""


@dataclass(frozen=True)
class Equivalents:
    """Time and energy of the same operations on other hardware."""

    v100_days: float
    a100_days: float
    h100_hours: float
    h100_kwh: float


def equivalents(operations: float) -> Equivalents:
    """The equivalents of the total operations of a training run."""
    hours = operations / H100 / 3600
    return Equivalents(operations / V100 / 86400, operations / A100 / 86400, hours, hours * H100_WATTS / 1000)


@dataclass(frozen=True)
class Phase:
    """A part of the run whose steps have equal cost; `timing` if it was measured.

    `steps` is None if the run is limited by minutes and was not measured.
    """

    name: str
    steps: int | None
    work: Work
    timing: Timing | None = None


@dataclass(frozen=True)
class SampleCost:
    """The cost of one image with one sampler; seconds if it was measured."""

    sampler: str
    steps: int
    calls: int
    operations: int
    seconds: float | None = None


@dataclass(frozen=True)
class Forecast:
    """Seconds of the training run on this machine by activity, and peak memory in bytes."""

    training: float
    encoding: float
    previews: float
    saving: float
    start: float
    peak_memory: int

    @property
    def total(self) -> float:
        """Seconds from the start of the command to its end."""
        return self.training + self.encoding + self.previews + self.saving + self.start


@dataclass(frozen=True)
class Estimate:
    """The whole estimate. `parameters` by part; `samples`: images or latents per step."""

    config: str
    stage: str
    image_size: tuple[int, int]
    latent: tuple[int, int, int]
    parameters: Mapping[str, int]
    samples: int
    phases: tuple[Phase, ...]
    memory: Memory
    sample_costs: tuple[SampleCost, ...] = ()
    encoding_operations: int = 0
    """Of encoding one image for stage 2."""
    device: str | None = None
    peak: float | None = None
    """Operations per second of a large matrix product, measured together with the steps."""
    encoding_seconds: float | None = None
    """Of one image."""
    images: int | None = None
    """Number of images in the dataset, if known."""
    minutes: float | None = None
    """Time limit of the training steps, if the run has one."""
    limited: bool = False
    """Whether a number of steps limits that time."""
    preview_every: int = 1
    save_every: int = 1
    sizes: Sizes | None = None
    """Of stage 2, whose networks may be in parts."""
    shard: Literal["none", "full"] = "none"
    accumulate: int = 1

    @property
    def steps(self) -> int | None:
        """Steps of the run; None if unknown."""
        counts = [phase.steps for phase in self.phases if phase.steps is not None]
        return sum(counts) if len(counts) == len(self.phases) else None

    @property
    def operations(self) -> int | None:
        """Operations of all training steps; None if unknown."""
        if self.steps is None:
            return None
        return sum((phase.steps or 0) * self.samples * phase.work.total for phase in self.phases)

    @property
    def forecast(self) -> Forecast | None:
        """The forecast from the measurements; None without them."""
        measured = [(phase, phase.timing) for phase in self.phases if phase.timing is not None]
        if len(measured) < len(self.phases) or not measured or self.steps is None:
            return None
        timings = [timing for _, timing in measured]
        of_steps = sum((phase.steps or 0) * timing.step for phase, timing in measured)
        return Forecast(
            training=of_steps if self.minutes is None or self.limited else 60 * self.minutes,
            encoding=(self.encoding_seconds or 0.0) * (self.images or 0),
            previews=(self.steps // self.preview_every + 1) * max(timing.preview for timing in timings),
            saving=(self.steps // self.save_every + 1) * max(timing.save for timing in timings),
            start=START_SECONDS,
            peak_memory=max(timing.peak_memory for timing in timings),
        )

    def utilisation(self, phase: Phase) -> float | None:
        """The share of the arithmetic peak that a phase's steps reach."""
        if phase.timing is None or self.peak is None:
            return None
        return self.samples * phase.work.total / phase.timing.step / self.peak


def affordable_steps(
    most: Sequence[int], seconds_each: Sequence[float], seconds: float, limits: tuple[int, int] | None = None
) -> list[int]:
    """Steps of each phase within `seconds`, which are spent on the phases in order, at most `most` steps each.

    The step during which the time ends is completed, as in a run. `limits`: the fewest and the most steps of all phases
    together, whatever they take.
    """
    counts = []
    for count, each in zip(most, seconds_each, strict=True):
        counts.append(max(0, min(count, math.ceil(seconds / each))))
        seconds -= counts[-1] * each
    if limits is None:
        return counts
    left = min(max(sum(counts), limits[0]), limits[1])
    bounded = []
    for count in most:
        bounded.append(min(count, left))
        left -= bounded[-1]
    return bounded
