"""The plan of a study: its configuration, and the training runs that follow from it."""

from dataclasses import dataclass
from typing import Any, Literal, Self

from pydantic import Field, model_validator

from sfumato.autoencoder.losses import LossConfig
from sfumato.autoencoder.perceptual import EfficientNetConfig, NoPerceptual
from sfumato.data.table import DataConfig
from sfumato.diffusion.objective import ObjectiveConfig
from sfumato.diffusion.schedule import ScaledLinearConfig
from sfumato.engine.precision import Precision
from sfumato.schema import Schema
from sfumato.studies.rules import LATENT_CHANNELS, autoencoder_for, codes_autoencoder_for, denoiser_for, transformer_for
from sfumato.training.autoencoder_run import AutoencoderRun, AutoencoderTraining
from sfumato.training.data import HeldOut, check_one_size, height_width
from sfumato.training.diffusion_run import DiffusionRun, DiffusionTraining
from sfumato.training.optim import OptimiserConfig
from sfumato.training.transformer import TransformerRun, TransformerTraining

SAVE_SECONDS = 30.0
"""Seconds between saves: about so much work is lost by a kill."""


class StudyData(Schema):
    """The part of another configuration that a study can reuse."""

    data: DataConfig


class StudyConfig(Schema):
    """`study.yaml`: every arm sees the same data, and has the same time or compute for both stages together."""

    data: DataConfig
    held_out: HeldOut = HeldOut()
    factors: tuple[int, ...] = Field((1, 2, 4, 8, 16, 32), min_length=1)
    codes: tuple[int, ...] = ()
    """Factors at which the other baseline is trained too: a VQ autoencoder and a transformer over its codes."""
    codebook: int = Field(512, ge=2)
    """Entries of every codebook."""
    budget: float = Field(gt=0)
    """Training seconds of an arm, for each seed; the reference arm converts them into compute."""
    equal: Literal["time", "compute"] = "time"
    seeds: int = Field(1, ge=1)
    first_share: float = Field(0.3, gt=0, lt=1)
    """Share of the budget that goes to stage 1, where there is one."""
    parameters: int = Field(1_500_000, ge=1, le=100_000_000_000)
    """Approximate parameters of every denoiser and transformer."""
    channels: int = Field(24, ge=8, multiple_of=8)
    """Channels of every autoencoder's first level."""
    perceptual: bool = False
    """Train stage 1 with the feature distance too. Its network is also the evaluator's, which favours latent spaces."""
    first_batch: int = Field(8, ge=1)
    batch: int = Field(32, ge=1)
    method: Literal["adamw", "muon"] = "muon"
    """The optimiser of every stage."""
    learning_rate: float = Field(4e-3, gt=0)
    """The peak; AdamW needs about a quarter of Muon's."""
    points: int = Field(5, ge=1)
    """How often an arm is evaluated during training."""
    samples: int = Field(512, ge=2)
    """Images generated for each evaluation."""
    sampling_steps: tuple[int, ...] = Field((5, 10, 20, 50), min_length=1)
    precision: Precision = "auto"

    @model_validator(mode="after")
    def _one_size(self) -> Self:
        check_one_size(self.data, "a study")
        return self

    @model_validator(mode="after")
    def _factors_suit_the_size(self) -> Self:
        H, W = height_width(self.data)
        if 1 in self.codes:
            raise ValueError(
                "factor 1 has no codes: a transformer over codes needs a VQ autoencoder, of factor 2 or more"
            )
        for f in (*self.factors, *self.codes):
            if f != 1 and f not in LATENT_CHANNELS:
                raise ValueError(f"factor {f} is not one of 1, {', '.join(map(str, LATENT_CHANNELS))}")
            if H % f or W % f or min(H, W) < 2 * f:
                raise ValueError(f"factor {f} leaves no latent of 2x2 of images of {H}x{W}: leave it out")
        for factors in (self.factors, self.codes):
            if len(set(factors)) < len(factors):
                raise ValueError(f"factors {factors} contain one twice")
        return self


@dataclass(frozen=True)
class Method:
    """A method to compare: diffusion at a downsampling factor, or a transformer over codes at that factor."""

    factor: int
    codes: bool = False

    @property
    def key(self) -> str:
        """The name in the study's files."""
        return f"codes-{self.factor}" if self.codes else str(self.factor)

    @property
    def name(self) -> str:
        """A short name, for methods that differ in the factor only."""
        if self.codes:
            return f"codes, f = {self.factor}"
        return "f = 1 (pixels)" if self.factor == 1 else f"f = {self.factor}"

    @property
    def long_name(self) -> str:
        """A full name, for different kinds of methods."""
        if self.codes:
            return f"transformer over codes, f = {self.factor}"
        return "pixel diffusion" if self.factor == 1 else f"latent diffusion, f = {self.factor}"


@dataclass(frozen=True)
class Arm:
    """One method trained with one seed."""

    method: Method
    seed: int

    @property
    def name(self) -> str:
        """The name of its folder."""
        return f"{'' if self.method.codes else 'f'}{self.method.key}-seed{self.seed}"


def methods(config: StudyConfig) -> list[Method]:
    """All methods that a study compares."""
    return [*(Method(factor) for factor in config.factors), *(Method(factor, codes=True) for factor in config.codes)]


def arms(config: StudyConfig) -> list[Arm]:
    """All methods with the first seed, then with the next one: an unfinished study is still a comparison."""
    return [Arm(method, seed) for seed in range(config.seeds) for method in methods(config)]


def named(config: StudyConfig, method: Method) -> str:
    """A method's name in a study: the full one if the study compares different kinds of methods."""
    return method.long_name if config.codes else method.name


def reference(config: StudyConfig) -> Method:
    """The method whose speed converts the budget's time into compute: diffusion at factor 4, or the middle one."""
    return Method(4 if 4 in config.factors else sorted(config.factors)[len(config.factors) // 2])


def first_run(config: StudyConfig, arm: Arm, steps: int, step_seconds: float = 1.0) -> AutoencoderRun | None:
    """Stage 1 of an arm; None in pixel space."""
    method = arm.method
    if method.factor == 1:
        return None
    perceptual = EfficientNetConfig(weight=0.1) if config.perceptual else NoPerceptual()
    variational = autoencoder_for(method.factor, config.channels)
    return AutoencoderRun(
        model=codes_autoencoder_for(variational, config.codebook) if method.codes else variational,
        data=config.data,
        held_out=config.held_out,
        loss=LossConfig(pixel="l2", kl_weight=1e-6, perceptual=perceptual),
        train=AutoencoderTraining(
            **{**_shared(config, arm, steps, step_seconds), "batch": config.first_batch},
            ema_decay=0.99,
            log_every=max(1, steps // 50),
            preview_every=max(1, steps // 3),
        ),
    )


def second_run(
    config: StudyConfig, arm: Arm, latent: tuple[int, int, int], steps: int, step_seconds: float = 1.0
) -> DiffusionRun:
    """Stage 2 of an arm on latents (C, h, w)."""
    return DiffusionRun(
        denoiser=denoiser_for(latent, config.parameters),
        schedule=ScaledLinearConfig(),
        objective=ObjectiveConfig(prediction="v", stratified=True),
        data=config.data,
        held_out=config.held_out,
        train=DiffusionTraining(**_shared(config, arm, steps, step_seconds), **_evaluation_schedule(config, steps)),
    )


def codes_run(
    config: StudyConfig, arm: Arm, latent: tuple[int, int, int], steps: int, step_seconds: float = 1.0
) -> TransformerRun:
    """Stage 2 of an arm on the codes of latents (C, h, w)."""
    return TransformerRun(
        transformer=transformer_for(latent[1:], config.codebook, config.parameters),
        data=config.data,
        held_out=config.held_out,
        train=TransformerTraining(**_shared(config, arm, steps, step_seconds), **_evaluation_schedule(config, steps)),
    )


def latent_of(config: StudyConfig, method: Method) -> tuple[int, int, int]:
    """(C, h, w) of the images at a factor; codes have the channels of their codebook vectors."""
    H, W = height_width(config.data)
    return (LATENT_CHANNELS.get(method.factor, 3), H // method.factor, W // method.factor)


def _shared(config: StudyConfig, arm: Arm, steps: int, step_seconds: float) -> dict[str, Any]:
    """The training settings that all stages share."""
    warmup = max(1, min(100, steps // 10))
    return {
        "steps": steps,
        "batch": config.batch,
        "precision": config.precision,
        "optimiser": OptimiserConfig(
            method=config.method, learning_rate=config.learning_rate, warmup_steps=warmup, weight_decay=0.0
        ),
        "seed": arm.seed,
        "save_every": max(1, min(steps, round(SAVE_SECONDS / max(step_seconds, 1e-4)))),
    }


def _evaluation_schedule(config: StudyConfig, steps: int) -> dict[str, Any]:
    """EMA, logging and evaluation settings of both kinds of stage 2."""
    every = max(1, steps // config.points)
    return {"ema_decay": 0.99 if steps < 2000 else 0.998, "log_every": every, "preview_every": every}
