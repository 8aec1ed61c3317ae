"""The configuration of a trained model: `config.yaml` of its folder."""

from typing import Annotated, Any, Literal

from pydantic import Field

from sfumato.autoencoder.model import AutoencoderConfig
from sfumato.conditioning.metadata import ConditioningMetadata
from sfumato.conditioning.table import ConditionerConfig, NoneConfig
from sfumato.denoiser.table import DenoiserConfig
from sfumato.diffusion.prediction import PredictionKind
from sfumato.diffusion.schedule import ScheduleConfig
from sfumato.schema import Schema
from sfumato.stored_format import FORMAT

Side = Annotated[int, Field(ge=1, le=65536)]


class DiffusionConfig(Schema):
    """The second stage: network, conditioning, noise schedule, and what the network predicts."""

    denoiser: DenoiserConfig
    conditioner: ConditionerConfig = NoneConfig()
    schedule: ScheduleConfig
    prediction: PredictionKind = "eps"
    condition_dropout: float = Field(0.0, ge=0, le=1)
    """Condition dropout in training; 0: the model has no unconditional mode, and guidance is off."""
    part_dropout: dict[str, float] = Field(default_factory=dict)
    """The same for single parts of a composite conditioner, which may then have separate guidance scales."""


class ModelConfig(Schema):
    """`config.yaml` of a model folder. `about` describes the training, for readers."""

    format: Literal[2] = FORMAT
    autoencoder: AutoencoderConfig
    image_size: tuple[Side, Side]
    """(H, W) of the training images."""
    classes: tuple[str, ...] | None = None
    classes_seen: tuple[int, ...] | None = None
    """The class numbers of the training images; others are refused. None: not recorded."""
    conditioning_metadata: ConditioningMetadata = ConditioningMetadata()
    """Metadata of the conditions besides text and class: names, colours, factors, the values of masks."""
    diffusion: DiffusionConfig | None = None
    about: dict[str, Any] = Field(default_factory=dict)
