"""The account of a training: what is known from its configuration, what was measured, what is foreseen."""

from collections.abc import Mapping
from dataclasses import dataclass

from sfumato.cost.measure import Timing
from sfumato.cost.memory import Memory
from sfumato.cost.work import Work

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
    """A part of the run with the same work a step; `timing` where it was measured."""

    name: str
    steps: int
    work: Work
    timing: Timing | None = None


@dataclass(frozen=True)
class Picture:
    """A picture by one sampler; seconds where it was measured."""

    sampler: str
    steps: int
    calls: int
    operations: int
    seconds: float | None = None


@dataclass(frozen=True)
class Foreseen:
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
class Account:
    """All of it. `parameters` by part; `samples` are pictures or latents a step."""

    config: str
    stage: str
    image_size: tuple[int, int]
    latent: tuple[int, int, int]
    parameters: Mapping[str, int]
    samples: int
    phases: tuple[Phase, ...]
    memory: Memory
    pictures: tuple[Picture, ...] = ()
    encoding_operations: int = 0
    """Of encoding one picture for stage 2."""
    device: str | None = None
    peak: float | None = None
    """Operations a second of a large matrix product, measured beside the steps."""
    encoding_seconds: float | None = None
    """Of one picture."""
    images: int | None = None
    """Of the data set, where it is known."""
    previews: int = 0
    saves: int = 0

    @property
    def steps(self) -> int:
        """Of the run."""
        return sum(phase.steps for phase in self.phases)

    @property
    def operations(self) -> int:
        """Of the training's steps in all."""
        return sum(phase.steps * self.samples * phase.work.total for phase in self.phases)

    @property
    def foreseen(self) -> Foreseen | None:
        """From what was measured; None where nothing was."""
        measured = [(phase, phase.timing) for phase in self.phases if phase.timing is not None]
        if len(measured) < len(self.phases) or not measured:
            return None
        longest = [timing for _, timing in measured]
        return Foreseen(
            training=sum(phase.steps * timing.step for phase, timing in measured),
            encoding=(self.encoding_seconds or 0.0) * (self.images or 0),
            previews=self.previews * max(timing.preview for timing in longest),
            saving=self.saves * max(timing.save for timing in longest),
            start=START_SECONDS,
            peak_memory=max(timing.peak_memory for timing in longest),
        )

    def utilisation(self, phase: Phase) -> float | None:
        """The share of the peak that a phase's steps reach."""
        if phase.timing is None or self.peak is None:
            return None
        return self.samples * phase.work.total / phase.timing.step / self.peak
