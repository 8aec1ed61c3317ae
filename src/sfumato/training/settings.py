"""The settings that trainings have in common, each declared once: type, range, default and help.

A training overrides a default by naming the setting again with its type of here, which carries the range.
"""

from typing import Annotated, Any, ClassVar, Self

from pydantic import Field, model_validator

from sfumato.engine.precision import Precision
from sfumato.schema import Schema
from sfumato.training.optim import OptimiserConfig
from sfumato.training.trackers import Tracking

Count = Annotated[int, Field(ge=1)]
Threads = Annotated[int, Field(ge=0)]
Decay = Annotated[float, Field(ge=0, lt=1)]

Mirrored = Annotated[
    bool,
    Field(description="Cache each image's mirror image too; not for data in which left and right differ in meaning."),
]
"""Of a run that trains on cached latents."""

DROPOUT = 0.1


class LoopSettings(Schema):
    """Settings of every loop."""

    steps: Count = 100_000
    minutes: float | None = Field(None, gt=0)
    """Train for this many minutes instead of `steps`; the learning rate follows the time, which counts training steps
    only."""
    step_limits: tuple[Count, Count] | None = None
    """With `minutes`: the fewest and the most steps, however fast the machine is."""
    batch: Count = 16
    precision: Precision = "auto"
    """auto: bfloat16 if the hardware supports it natively."""
    optimiser: OptimiserConfig = OptimiserConfig()
    ema_decay: Decay = 0.999
    """Decay of the averaged weights, which are exported."""
    seed: int = 0
    log_every: Count = 50
    workers: Threads = 1
    """Reading threads."""
    max_skipped: Count = 20
    """Stop after this many steps in a row with gradients that are not finite."""

    @model_validator(mode="after")
    def _limits_are_of_a_time(self) -> Self:
        if self.step_limits is None:
            return self
        fewest, most = self.step_limits
        if fewest > most:
            raise ValueError(f"step_limits is [{fewest}, {most}]: give the fewest steps first")
        if self.minutes is None:
            raise ValueError(
                "step_limits bounds the steps of a training for minutes: give train.minutes, or train.step_limits=null"
            )
        return self


class RunSettings(LoopSettings):
    """Settings of every training whose run is saved, previewed and resumed."""

    accumulate: Count = 1
    """Micro-batches per step."""
    track: Tracking = "auto"
    """A program that also shows curves and previews: tensorboard, wandb, trackio, none; auto is tensorboard if it is
    installed."""
    preview_every: Count = 1000
    save_every: Count = 1000


class WholeNetworks(RunSettings):
    """Settings of a training whose networks every process has whole."""

    small: ClassVar[str] = ""
    """Why that suffices, for the message."""

    @model_validator(mode="before")
    @classmethod
    def _not_split(cls, raw: Any) -> Any:
        if isinstance(raw, dict) and "shard" in raw:
            raise ValueError(
                f"train.shard splits the networks of `sfumato train diffusion` alone{cls.small}: leave it out"
            )
        return raw


class ConditionDropout(Schema):
    """How often a conditional network is trained without its condition."""

    condition_dropout: float = Field(DROPOUT, ge=0, le=1)
    """Probability that a sample is trained without its condition, which guidance needs; with 0 there is no guidance."""


class PartDropout(ConditionDropout):
    """The same of a network whose conditioner may be a composite."""

    part_dropout: dict[str, float] = Field(default_factory=dict)
    """The same for single parts of a composite conditioner, by name and independently: each then has a guidance
    scale."""
