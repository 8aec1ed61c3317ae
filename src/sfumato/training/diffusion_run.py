"""The configuration of a training of stage 2."""

from pathlib import Path
from typing import Literal, Self

from pydantic import Field, model_validator

from sfumato.conditioning.table import CompositeConfig, ConditionerConfig, NoneConfig
from sfumato.data.conditions.config import ConditionsConfig
from sfumato.data.table import DataConfig
from sfumato.denoiser.table import DenoiserConfig, check_time
from sfumato.diffusion.objective import ObjectiveConfig
from sfumato.diffusion.schedule import ScheduleConfig
from sfumato.schema import Schema
from sfumato.training.averages.ema import PowerAverages
from sfumato.training.data import HeldOut
from sfumato.training.settings import DROPOUT, Count, Mirrored, PartDropout, RunSettings


class EvaluationConfig(Schema):
    """A small evaluation while training: samples against held-out images; the best model is kept in `best`."""

    every: int = Field(0, ge=0)
    """Steps between two evaluations; 0: none."""
    samples: int = Field(512, ge=2)
    steps: int = Field(20, ge=1)
    metric: Literal["fd", "kd"] = "kd"
    """kd is unbiased for few samples."""
    features: str = "efficientnet-lite0"


class DiffusionTraining(PartDropout, RunSettings):
    """Length and settings of the training; a step uses batch · accumulate · processes latents."""

    batch: Count = 64
    checkpointing: bool = False
    """Keep only the inputs of the denoiser's blocks and recompute the rest in the backward pass: less memory, the same
    results, about a third more time."""
    shard: Literal["none", "full"] = "none"
    """With several processes. none: each has the whole networks; full: each has a part of the weights, gradients,
    moments and averages (FSDP2), for networks that do not fit on a GPU. The same results up to rounding."""
    power_averages: PowerAverages | None = None
    """Also track averages whose width can be chosen after training, see `sfumato ema`."""
    evaluation: EvaluationConfig = EvaluationConfig()

    @model_validator(mode="after")
    def _sharded_is_supported(self) -> Self:
        if self.shard == "full" and self.power_averages is not None:
            raise ValueError("train.shard is full, but train.power_averages are saved whole: leave either out")
        return self


class DiffusionRun(Schema):
    """The configuration of `sfumato train diffusion`."""

    denoiser: DenoiserConfig
    conditioner: ConditionerConfig = NoneConfig()
    schedule: ScheduleConfig
    objective: ObjectiveConfig = ObjectiveConfig()
    data: DataConfig
    conditions: ConditionsConfig = ConditionsConfig()
    held_out: HeldOut = HeldOut()
    mirrored: Mirrored = False
    train: DiffusionTraining = DiffusionTraining()
    start: Path | None = None
    """A model folder or run to continue from: its weights, tokenizer and latent scaling are used instead of new
    ones."""

    @model_validator(mode="after")
    def _no_student(self) -> Self:
        if self.denoiser.flow_map:
            raise ValueError(
                "denoiser.flow_map is for students, which `sfumato distill` makes of trained models: leave it out"
            )
        check_time(self.denoiser, self.schedule.steps)
        return self

    @model_validator(mode="after")
    def _dropout_has_a_condition(self) -> Self:
        if self.conditioner.kind == "none" and self.train.condition_dropout not in (0, DROPOUT):
            raise ValueError("train.condition_dropout is set but conditioner.kind is none: there is nothing to drop")
        parts = self.conditioner.parts if isinstance(self.conditioner, CompositeConfig) else {}
        for name, rate in self.train.part_dropout.items():
            if name not in parts:
                actual = f"conditioner.parts has {', '.join(parts)}" if parts else "conditioner.kind is not composite"
                raise ValueError(f"train.part_dropout names {name!r}, but {actual}")
            if not 0 <= rate <= 1:
                raise ValueError(f"train.part_dropout.{name} is {rate:g}: give a share between 0 and 1")
        return self

    @model_validator(mode="after")
    def _evaluation_has_its_conditions(self) -> Self:
        if self.train.evaluation.every and self.conditions.gives:
            raise ValueError(
                "train.evaluation samples from captions and labels alone, but conditions sets "
                f"{', '.join(self.conditions.gives)}: leave train.evaluation.every at 0, the previews log sample_psnr"
            )
        return self


def part_dropout(config: DiffusionRun) -> dict[str, float]:
    """The rates of all parts of a composite conditioner; empty if none is dropped separately."""
    rates = config.train.part_dropout
    if not rates or not isinstance(config.conditioner, CompositeConfig):
        return {}
    return {name: rates.get(name, 0.0) for name in config.conditioner.parts}
