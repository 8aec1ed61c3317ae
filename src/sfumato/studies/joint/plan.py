"""The plan of a study of joint training: its configuration, and the trainings that follow from it."""

from dataclasses import dataclass
from typing import Any, Literal, Self, get_args

from pydantic import Field, model_validator

from sfumato.data.toyworld.dataset import ToyWorldConfig
from sfumato.schema import Schema
from sfumato.training.autoencoder_run import AutoencoderRun
from sfumato.training.coupling import AnchoredCoupling, Coupling, DetachedCoupling, NaiveCoupling, PriorCoupling
from sfumato.training.diffusion_run import DiffusionRun
from sfumato.training.joint_run import JointRun, first_stage, second_stage

Way = Literal["two-stage", "naive", "detached", "prior", "anchored"]
WAYS: tuple[Way, ...] = get_args(Way)
TWO_STAGE: Way = "two-stage"

COUPLINGS: dict[str, type[NaiveCoupling | DetachedCoupling | PriorCoupling | AnchoredCoupling]] = {
    "naive": NaiveCoupling,
    "detached": DetachedCoupling,
    "prior": PriorCoupling,
    "anchored": AnchoredCoupling,
}
NEVER = 10**9
"""Steps between two actions that a study does not want."""


class JointStudyConfig(Schema):
    """`study.yaml`: every way trains the same networks on the same images for the same minutes."""

    run: JointRun
    """Networks, losses and data of every way; its coupling is that of the way of the same kind."""
    minutes: float = Field(3.0, gt=0, le=1_000_000)
    """Minutes of each training with one seed: both stages, and encoding where one follows the other."""
    seeds: int = Field(3, ge=1)
    """Trainings of each way."""
    ways: tuple[Way, ...] = Field(("two-stage", "naive", "detached", "prior", "anchored"), min_length=1)
    first_share: float = Field(0.35, gt=0, lt=1)
    """Share of the minutes that stage 1 has, where stage 2 follows it."""
    first_batch: int = Field(8, ge=1)
    """Images in a step of stage 1, where stage 2 follows it."""
    samples: int = Field(256, ge=2)
    """Images that are sampled from each model."""
    sampling_steps: int = Field(10, ge=1)
    guidance: float = Field(3.0, ge=1, le=1000)
    """Guidance scale of the samples, where the images have captions or labels."""
    every: int = Field(50, ge=1)
    """Steps between two measurements of spread, effective rank and PSNR."""

    @model_validator(mode="after")
    def _ways_differ(self) -> Self:
        if len(set(self.ways)) < len(self.ways):
            raise ValueError(f"ways {', '.join(self.ways)} contain one twice")
        return self

    @model_validator(mode="after")
    def _every_way_can_be_trained(self) -> Self:
        for way in self.ways:
            if way != TWO_STAGE:
                joint_run(self, Arm(way, 0))
        return self

    @property
    def toy(self) -> ToyWorldConfig | None:
        """The toy world, if it is what is trained on."""
        return self.run.data if isinstance(self.run.data, ToyWorldConfig) else None


@dataclass(frozen=True)
class Arm:
    """One way, trained with one seed."""

    way: Way
    seed: int

    @property
    def name(self) -> str:
        """The name of its folder."""
        return f"{self.way}-seed{self.seed}"


def arms(config: JointStudyConfig) -> list[Arm]:
    """All ways with the first seed, then with the next one: an unfinished study is still a comparison."""
    return [Arm(way, seed) for seed in range(config.seeds) for way in config.ways]


def joint_run(config: JointStudyConfig, arm: Arm) -> JointRun:
    """The training of an arm that trains both stages at once."""
    raw = config.run.model_dump(mode="json")
    raw["coupling"] = coupling_of(config, arm.way).model_dump(mode="json")
    raw["train"] |= _shared(config, arm) | {"minutes": config.minutes}
    return JointRun.model_validate(raw)


def coupling_of(config: JointStudyConfig, way: Way) -> Coupling:
    """The coupling of a way: the configured one where it is of that kind, else the default one of its kind."""
    return config.run.coupling if config.run.coupling.kind == way else COUPLINGS[way]()


def first_run(config: JointStudyConfig, arm: Arm) -> AutoencoderRun:
    """Stage 1 of the two-stage way."""
    raw = first_stage(config.run).model_dump(mode="json")
    raw["train"] |= _shared(config, arm)
    raw["train"] |= {"minutes": config.first_share * config.minutes, "batch": config.first_batch}
    return AutoencoderRun.model_validate(raw)


def second_run(config: JointStudyConfig, arm: Arm, minutes: float) -> DiffusionRun:
    """Stage 2 of the two-stage way, for the minutes that are left."""
    raw = second_stage(config.run).model_dump(mode="json")
    raw["train"] |= _shared(config, arm) | {"minutes": minutes, "preview_every": NEVER}
    return DiffusionRun.model_validate(raw)


def _shared(config: JointStudyConfig, arm: Arm) -> dict[str, Any]:
    """The settings of every training of an arm."""
    return {"seed": arm.seed, "track": "none", "preview_every": config.every, "log_every": config.every}
