"""The account of a training: what is known from its configuration, what was measured, what is foreseen."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from sfumato.estimate.measure import Timing
from sfumato.estimate.memory import Memory
from sfumato.estimate.work import Work

V100 = 5.7e12
"""Operations a second of the paper's V100, 36 % of its float32 peak: so the 178,000 steps of 1,200 with the U-Net of
the class-conditional ImageNet model are the 271 V100-days of its Table 18."""
A100 = 2.2 * V100
"""As the paper converts: an A100 day is 2.2 V100 days."""
H100 = 0.4 * 989e12
"""40 % of the card's dense bfloat16 peak: what a well-kept training of today reaches."""
H100_WATTS = 700
START_SECONDS = 5.0
"""Imports, opening of files, the first compiled kernel: not measured, they weigh in short runs only."""


@dataclass(frozen=True)
class Equivalents:
    """What so many operations would take elsewhere."""

    v100_days: float
    a100_days: float
    h100_hours: float
    h100_kwh: float


def equivalents(operations: float) -> Equivalents:
    """Of a training's operations in all."""
    hours = operations / H100 / 3600
    return Equivalents(operations / V100 / 86400, operations / A100 / 86400, hours, hours * H100_WATTS / 1000)


@dataclass(frozen=True)
class Phase:
    """A part of the run with the same work a step; `timing` where it was measured.

    `steps` is None where the run is of minutes and was not measured.
    """

    name: str
    steps: int | None
    work: Work
    timing: Timing | None = None


@dataclass(frozen=True)
class SampleCost:
    """An image by one sampler; seconds where it was measured."""

    sampler: str
    steps: int
    calls: int
    operations: int
    seconds: float | None = None


@dataclass(frozen=True)
class Forecast:
    """Seconds of the training on this machine by what takes them, and bytes at the peak."""

    training: float
    encoding: float
    previews: float
    saving: float
    start: float
    peak_memory: int

    @property
    def total(self) -> float:
        """Seconds from the command to its end."""
        return self.training + self.encoding + self.previews + self.saving + self.start


@dataclass(frozen=True)
class Estimate:
    """All of it. `parameters` by part; `samples` are images or latents a step."""

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
    """Operations a second of a large matrix product, measured beside the steps."""
    encoding_seconds: float | None = None
    """Of one image."""
    images: int | None = None
    """Of the data set, where it is known."""
    minutes: float | None = None
    """Of the training's steps, where the run is of minutes."""
    preview_every: int = 1
    save_every: int = 1

    @property
    def steps(self) -> int | None:
        """Of the run; None where they are not known."""
        counts = [phase.steps for phase in self.phases if phase.steps is not None]
        return sum(counts) if len(counts) == len(self.phases) else None

    @property
    def operations(self) -> int | None:
        """Of the training's steps in all; None where they are not known."""
        if self.steps is None:
            return None
        return sum((phase.steps or 0) * self.samples * phase.work.total for phase in self.phases)

    @property
    def forecast(self) -> Forecast | None:
        """From what was measured; None where nothing was."""
        measured = [(phase, phase.timing) for phase in self.phases if phase.timing is not None]
        if len(measured) < len(self.phases) or not measured or self.steps is None:
            return None
        longest = [timing for _, timing in measured]
        of_steps = sum((phase.steps or 0) * timing.step for phase, timing in measured)
        return Forecast(
            training=of_steps if self.minutes is None else 60 * self.minutes,
            encoding=(self.encoding_seconds or 0.0) * (self.images or 0),
            previews=(self.steps // self.preview_every + 1) * max(timing.preview for timing in longest),
            saving=(self.steps // self.save_every + 1) * max(timing.save for timing in longest),
            start=START_SECONDS,
            peak_memory=max(timing.peak_memory for timing in longest),
        )

    def utilisation(self, phase: Phase) -> float | None:
        """The share of the peak that a phase's steps reach."""
        if phase.timing is None or self.peak is None:
            return None
        return self.samples * phase.work.total / phase.timing.step / self.peak


def bought(most: Sequence[int], seconds_each: Sequence[float], seconds: float) -> list[int]:
    """How many steps of each phase a time buys, which is spent in their order on at most so many of each.

    The step in which the time ends is finished, as a run finishes it.
    """
    counts = []
    for count, each in zip(most, seconds_each, strict=True):
        counts.append(max(0, min(count, math.ceil(seconds / each))))
        seconds -= counts[-1] * each
    return counts
