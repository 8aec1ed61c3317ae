"""The plan of the study of latent spaces: its configuration, and the trainings that follow from it."""

from pathlib import Path
from typing import Any, Self

from pydantic import Field, model_validator

from sfumato.autoencoder.losses import LossConfig
from sfumato.conditioning.table import ConditionerConfig, NoneConfig
from sfumato.conditioning.text import TextConfig
from sfumato.data.table import DataConfig
from sfumato.data.toyworld.dataset import ToyWorldConfig
from sfumato.diffusion.objective import ObjectiveConfig
from sfumato.diffusion.schedule import FlowConfig
from sfumato.diffusion.times import LogitNormalTimes
from sfumato.diffusion.weighting import LearnedWeighting
from sfumato.engine.precision import Precision
from sfumato.schema import Schema
from sfumato.studies.latents.spaces import PLAIN, SPACES, LatentSpace
from sfumato.studies.plan import SAVE_SECONDS
from sfumato.studies.rules import LATENT_CHANNELS, autoencoder_for, denoiser_for
from sfumato.training.autoencoder_run import AutoencoderRun, AutoencoderTraining
from sfumato.training.data import HeldOut, check_one_size, height_width
from sfumato.training.diffusion_run import DiffusionRun, DiffusionTraining
from sfumato.training.optim import OptimiserConfig

TOLERANCE = 0.3
"""Reconstructions are equally good if their PSNR is within this many dB."""


class LatentsStudyConfig(Schema):
    """`study.yaml` of the study of latent spaces: the same images, networks, steps and second stage for each."""

    data: DataConfig
    held_out: HeldOut = HeldOut()
    spaces: tuple[str, ...] = ("plain", "equivariance", "noise", "spectral")
    """Latent spaces to compare; plain is always one of them."""
    first_minutes: float = Field(2.5, gt=0)
    """Training minutes of the plain first stage; the others train for as many steps."""
    first_steps: int | None = Field(None, ge=2)
    """Training steps of every first stage, instead of minutes."""
    longest: float = Field(2.0, ge=1)
    """A first stage with worse reconstructions than the best continues to train until its PSNR is within 0.3 dB, up to
    this many times the steps."""
    first_seed: int = 0
    minutes: float = Field(4.0, gt=0)
    """Training minutes of stage 2, for each latent space and seed, converted into steps that are the same for all."""
    steps: int | None = Field(None, ge=1)
    """Training steps of stage 2, instead of minutes."""
    seeds: int = Field(3, ge=1)
    """Second stages per latent space."""
    factor: int = Field(4, ge=2)
    """Downsampling factor of every first stage."""
    channels: int = Field(16, ge=8, multiple_of=8)
    """Channels of every autoencoder's first level."""
    parameters: int = Field(1_000_000, ge=1, le=100_000_000_000)
    """Approximate parameters of every denoiser."""
    first_batch: int = Field(8, ge=1)
    batch: int = Field(64, ge=1)
    learning_rate: float = Field(4e-3, gt=0)
    points: int = Field(4, ge=1)
    """How many times a second stage is scored, at equal distances, the last time at its end."""
    samples: int = Field(256, ge=2)
    """Images generated for each score."""
    sampling_steps: int = Field(20, ge=1)
    """Sampling steps of these images."""
    measured: int = Field(1024, ge=16)
    """Maximum number of held-out images on which latents and reconstructions are measured."""
    precision: Precision = "auto"

    @model_validator(mode="after")
    def _spaces_are_known(self) -> Self:
        unknown = [name for name in self.spaces if name not in SPACES]
        if unknown:
            raise ValueError(f"spaces: {unknown[0]!r} is not one of {', '.join(SPACES)}")
        if len(set(self.spaces)) < len(self.spaces):
            raise ValueError(f"spaces {', '.join(self.spaces)} contain one twice")
        if PLAIN not in self.spaces or len(self.spaces) == 1:
            raise ValueError(f"spaces {', '.join(self.spaces)}: give {PLAIN} and at least one to compare it with")
        return self

    @model_validator(mode="after")
    def _factor_suits_the_size(self) -> Self:
        check_one_size(self.data, "a study")
        (H, W), f = height_width(self.data), self.factor
        if f not in LATENT_CHANNELS:
            raise ValueError(f"factor {f} is not one of {', '.join(map(str, LATENT_CHANNELS))}")
        if H % f or W % f or min(H, W) < 4 * f:
            raise ValueError(f"factor {f} leaves no latent of 4x4 of images of {H}x{W}: choose a smaller factor")
        return self

    @property
    def latent(self) -> tuple[int, int, int]:
        """(C, h, w) of every latent."""
        H, W = height_width(self.data)
        return LATENT_CHANNELS[self.factor], H // self.factor, W // self.factor

    @property
    def texts(self) -> bool:
        """Whether stage 2 is conditioned on captions: of the toy world, where images can be compared with them."""
        return isinstance(self.data, ToyWorldConfig)


STAGE_ONE: tuple[str, ...] = (
    "data",
    "held_out",
    "first_minutes",
    "first_steps",
    "longest",
    "first_seed",
    "factor",
    "channels",
)
STAGE_ONE += ("first_batch", "learning_rate", "measured", "precision")
"""The settings that first stages depend on."""


def chosen(config: LatentsStudyConfig) -> list[LatentSpace]:
    """The latent spaces of a study, in the order of the configuration."""
    return [SPACES[name] for name in config.spaces]


def first_run(
    config: LatentsStudyConfig, space: LatentSpace, steps: int, planned: int | None = None, step_seconds: float = 1.0
) -> AutoencoderRun:
    """The training of a first stage as a whole; `planned` are the steps before it was decided to train on."""
    model = autoencoder_for(config.factor, config.channels)
    return AutoencoderRun(
        model=type(model)(**{**model.model_dump(), **space.model}),
        data=config.data,
        held_out=config.held_out,
        loss=LossConfig(**{"pixel": "l2", "kl_weight": 1e-3, **space.loss}),
        train=_first_training(config, steps, planned or steps, step_seconds),
    )


def decoder_run(
    config: LatentsStudyConfig, space: LatentSpace, start: Path, steps: int, planned: int, step_seconds: float = 1.0
) -> AutoencoderRun:
    """The training of the decoder alone that follows `start`, without what regularises the latents."""
    whole = first_run(config, space, steps, planned, step_seconds)
    plain = LossConfig(pixel=whole.loss.pixel, kl_weight=whole.loss.kl_weight)
    train = whole.train.model_copy(update={"part": "decoder"})
    return whole.model_copy(update={"loss": plain, "train": train, "start": start})


def second_run(config: LatentsStudyConfig, seed: int, steps: int, step_seconds: float = 1.0) -> DiffusionRun:
    """The training of stage 2: the recipe of the shipped toy model, by rule for other sizes."""
    every = -(-steps // config.points)
    return DiffusionRun(
        denoiser=denoiser_for(config.latent, config.parameters),
        conditioner=conditioner_for(config),
        schedule=FlowConfig(),
        objective=ObjectiveConfig(
            prediction="flow",
            times=LogitNormalTimes(mean=0.8, std=1.3) if config.texts else LogitNormalTimes(),
            weighting=LearnedWeighting(),
            stratified=True,
            condition_mean=0.5 if config.texts else 0.0,
        ),
        data=config.data,
        held_out=config.held_out,
        train=DiffusionTraining(
            **_shared(config, steps, steps, step_seconds),
            batch=config.batch,
            seed=seed,
            ema_decay=_decay(steps),
            log_every=every,
            preview_every=every,
        ),
    )


def conditioner_for(config: LatentsStudyConfig) -> ConditionerConfig:
    """The text transformer of the toy recipe for captions, else none."""
    if not config.texts:
        return NoneConfig()
    return TextConfig(dim=64, depth=2, heads=2, head_dim=32, max_tokens=32, vocabulary=512, pooled=True)


def _first_training(config: LatentsStudyConfig, steps: int, planned: int, step_seconds: float) -> AutoencoderTraining:
    return AutoencoderTraining(
        **_shared(config, steps, planned, step_seconds),
        batch=config.first_batch,
        seed=config.first_seed,
        ema_decay=0.99,
        log_every=max(1, steps // 50),
        preview_every=max(1, steps // 3),
    )


def _decay(steps: int) -> float:
    """An average over about the last twenty-fifth of the steps."""
    return round(min(0.9995, max(0.9, 1 - 25 / steps)), 5)


def _shared(config: LatentsStudyConfig, steps: int, planned: int, step_seconds: float) -> dict[str, Any]:
    """The settings that both stages share."""
    return {
        "steps": steps,
        "precision": config.precision,
        "optimiser": OptimiserConfig(
            method="muon",
            learning_rate=config.learning_rate,
            warmup_steps=max(1, min(100, planned // 10)),
            weight_decay=0.0,
        ),
        "save_every": max(1, min(steps, round(SAVE_SECONDS / max(step_seconds, 1e-4)))),
    }
