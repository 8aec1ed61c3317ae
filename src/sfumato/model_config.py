"""The configuration of a trained model: `config.yaml` of its folder."""

from typing import Annotated, Any, Literal, Self

from pydantic import Field, model_validator

from sfumato.autoencoder.model import AutoencoderConfig
from sfumato.conditioning.metadata import ConditioningMetadata
from sfumato.conditioning.table import ConditionerConfig, NoneConfig
from sfumato.denoiser.table import DenoiserConfig, check_time
from sfumato.diffusion.objective import PosteriorLatents
from sfumato.diffusion.prediction import PredictionKind
from sfumato.diffusion.schedule import ScheduleConfig
from sfumato.schema import Schema
from sfumato.stored_format import FORMAT

Method = Literal["trajectories", "mean-flow", "consistency"]
"""How a student learns (`sfumato.training.teaching`)."""

Side = Annotated[int, Field(ge=1, le=65536)]


class StudentConfig(Schema):
    """Marks a student, made by `sfumato distill`: the flow map of another model, its teacher."""

    teacher: str
    """The teacher's digest."""
    method: Method
    low: float = Field(1.0, gt=0)
    high: float = Field(1.0, gt=0)
    """The guidance scales that it was trained for, which its network is given; both 1 if the teacher has none."""

    @model_validator(mode="after")
    def _in_order(self) -> Self:
        if self.low > self.high:
            raise ValueError(f"low {self.low:g} must not be above high {self.high:g}")
        return self


class DiffusionConfig(Schema):
    """The second stage: network, conditioning, noise schedule, and what the network predicts."""

    denoiser: DenoiserConfig
    conditioner: ConditionerConfig = NoneConfig()
    schedule: ScheduleConfig
    prediction: PredictionKind = "eps"
    latents: PosteriorLatents = "sample"
    """Which latents of the posterior it was trained on."""
    condition_dropout: float = Field(0.0, ge=0, le=1)
    """Condition dropout in training; 0: the model has no unconditional mode, and guidance is off."""
    part_dropout: dict[str, float] = Field(default_factory=dict)
    """The same for single parts of a composite conditioner, which may then have separate guidance scales."""
    student: StudentConfig | None = None
    """Set if the network is a flow map: called once for a step, with its end and the guidance scale."""

    @model_validator(mode="after")
    def _student_has_its_network(self) -> Self:
        if self.denoiser.flow_map != (self.student is not None):
            raise ValueError("student and denoiser.flow_map belong together: `sfumato distill` sets both")
        check_time(self.denoiser, self.schedule.steps)
        return self


class ModelConfig(Schema):
    """`config.yaml` of a model folder. `about` describes the training, for readers.

    Example:
        >>> config = sfumato.load("zoo:toy").config
        >>> config.diffusion.prediction, config.autoencoder.factor
        ('flow', 4)
    """

    format: Literal[2] = FORMAT
    autoencoder: AutoencoderConfig
    image_size: tuple[Side, Side]
    """(H, W) of the training images."""
    trained_sizes: tuple[tuple[Side, Side], ...] = ()
    """(H, W) of all training images, if they had several sizes."""
    classes: tuple[str, ...] | None = None
    classes_seen: tuple[int, ...] | None = None
    """The class numbers of the training images; others are refused. None: not recorded."""
    conditioning_metadata: ConditioningMetadata = ConditioningMetadata()
    """Metadata of the conditions besides text and class: names, colours, factors, the values of masks."""
    diffusion: DiffusionConfig | None = None
    about: dict[str, Any] = Field(default_factory=dict)
