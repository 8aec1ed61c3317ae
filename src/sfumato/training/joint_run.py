"""The configuration of a training of both stages at once, and each stage's own configuration in it."""

from typing import Any, Self

from pydantic import Field, model_validator

from sfumato.autoencoder import losses
from sfumato.autoencoder.losses import LossConfig
from sfumato.autoencoder.model import AutoencoderConfig
from sfumato.conditioning.table import CompositeConfig, ConditionerConfig, NoneConfig
from sfumato.data.table import DataConfig
from sfumato.denoiser.table import DenoiserConfig
from sfumato.diffusion.objective import ObjectiveConfig
from sfumato.diffusion.schedule import ScheduleConfig
from sfumato.schema import Schema
from sfumato.training.autoencoder_run import AutoencoderRun, AutoencoderTraining
from sfumato.training.coupling import Coupling, DetachedCoupling
from sfumato.training.data import HeldOut, check_one_size
from sfumato.training.diffusion_run import DiffusionRun, DiffusionTraining
from sfumato.training.optim import OptimiserConfig
from sfumato.training.settings import Count, PartDropout, RunSettings, Threads, WholeNetworks

CONDITIONERS = ("none", "class", "text", "pretrained-text")
"""Kinds of conditioners that read captions and labels; the others need images beside the image."""


class JointTraining(PartDropout, WholeNetworks):
    """Length and settings of the training; a step uses batch · accumulate · processes images."""

    steps: Count = 20_000
    optimiser: OptimiserConfig = OptimiserConfig()
    """Optimiser of the autoencoder."""
    workers: Threads = 2
    draws: int = Field(4, ge=1, le=1024)
    """Noised latents of each image that stage 2 trains on in a step: this costs less than encoding more images; 3 to 14
    in UNITE."""
    denoiser: OptimiserConfig = OptimiserConfig()
    """Optimiser of denoiser and conditioner."""
    preview_images: int = Field(64, ge=2)
    """Held-out images that are reconstructed for PSNR, spread and effective rank."""


class JointRun(Schema):
    """The configuration of `sfumato train joint`."""

    model: AutoencoderConfig
    loss: LossConfig = LossConfig()
    denoiser: DenoiserConfig
    conditioner: ConditionerConfig = NoneConfig()
    schedule: ScheduleConfig
    objective: ObjectiveConfig = ObjectiveConfig()
    coupling: Coupling = DetachedCoupling()
    data: DataConfig
    held_out: HeldOut = HeldOut()
    train: JointTraining = JointTraining()

    @model_validator(mode="after")
    def _both_stages_are_valid(self) -> Self:
        first_stage(self)
        second_stage(self)
        check_one_size(self.data, "joint training")
        return self

    @model_validator(mode="after")
    def _stage_1_is_supported(self) -> Self:
        if self.model.bottleneck.kind != "kl":
            raise ValueError(
                f"model.bottleneck.kind is {self.model.bottleneck.kind}, but both stages train together on the latents "
                "of kind kl only: set model.bottleneck.kind=kl"
            )
        unsupported = {
            "loss.adversarial.weight": self.loss.adversarial.weight,
            **{f"loss.{name}": value for name, value in losses.changing_latents(self.loss).items()},
            "loss.latent_noise.gamma": self.loss.latent_noise.gamma,
        }
        for name, value in unsupported.items():
            if value > 0:
                raise ValueError(
                    f"{name} is {value:g}, which `sfumato train joint` does not support: set it to 0; coupling is what "
                    "regularises the latents here"
                )
        return self

    @model_validator(mode="after")
    def _conditions_are_captions_or_labels(self) -> Self:
        parts = self.conditioner.parts if isinstance(self.conditioner, CompositeConfig) else {"": self.conditioner}
        for name, part in parts.items():
            if part.kind not in CONDITIONERS:
                where = f"conditioner.parts.{name}.kind" if name else "conditioner.kind"
                raise ValueError(
                    f"{where} is {part.kind}, but both stages train together on captions and labels alone: set "
                    "conditioner.kind to text, class or none, or train the stages one after the other"
                )
        return self

    @model_validator(mode="after")
    def _prior_is_a_bound(self) -> Self:
        if self.coupling.kind == "prior" and self.objective.latents != "mean":
            raise ValueError(
                "coupling.kind prior has a deterministic encoder, but objective.latents is sample: set "
                "objective.latents=mean"
            )
        if self.coupling.kind == "prior" and self.objective.loss != "l2":
            raise ValueError(
                f"coupling.kind prior is a bound on squared errors, but objective.loss is {self.objective.loss}: set "
                "objective.loss=l2"
            )
        return self


def first_stage(config: JointRun) -> AutoencoderRun:
    """The autoencoder's part of the configuration."""
    shared = _shared(config.train)
    return AutoencoderRun(
        model=config.model,
        data=config.data,
        held_out=config.held_out,
        loss=config.loss,
        train=AutoencoderTraining(
            batch=config.train.batch,
            optimiser=config.train.optimiser,
            preview_images=config.train.preview_images,
            **shared,
        ),
    )


def second_stage(config: JointRun) -> DiffusionRun:
    """The diffusion model's part of the configuration; its batch counts noised latents."""
    shared = _shared(config.train)
    return DiffusionRun(
        denoiser=config.denoiser,
        conditioner=config.conditioner,
        schedule=config.schedule,
        objective=config.objective,
        data=config.data,
        held_out=config.held_out,
        train=DiffusionTraining(
            batch=config.train.batch * config.train.draws,
            optimiser=config.train.denoiser,
            condition_dropout=config.train.condition_dropout,
            part_dropout=config.train.part_dropout,
            **shared,
        ),
    )


def _shared(train: JointTraining) -> dict[str, Any]:
    """The settings that both stages have."""
    return {name: getattr(train, name) for name in RunSettings.model_fields if name not in ("batch", "optimiser")}
