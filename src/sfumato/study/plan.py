"""What a study compares: its configuration, and the trainings that follow from it."""

from dataclasses import dataclass
from typing import Literal, Self

from pydantic import Field, model_validator

from sfumato.autoencoder.losses import LossConfig
from sfumato.autoencoder.perceptual import EfficientNetConfig, NoPerceptual
from sfumato.data.table import DataConfig
from sfumato.diffusion.objective import ObjectiveConfig
from sfumato.diffusion.schedule import LinearConfig
from sfumato.schema import Schema
from sfumato.study.rules import LATENT_CHANNELS, autoencoder_for, denoiser_for
from sfumato.training.autoencoder import AutoencoderRun, AutoencoderTraining
from sfumato.training.data import HeldOut, height_width
from sfumato.training.diffusion import DiffusionRun, DiffusionTraining
from sfumato.training.optim import OptimiserConfig
from sfumato.training.workers import Precision

SAVE_SECONDS = 30.0
"""About so much work is lost by a kill."""


class StudyConfig(Schema):
    """`study.yaml`: every arm sees the same data, and has the same time or compute for its two stages together."""

    data: DataConfig
    held_out: HeldOut = HeldOut()
    factors: tuple[int, ...] = Field((1, 2, 4, 8, 16, 32), min_length=1)
    budget: float = Field(gt=0)
    """Seconds of training of an arm, once for each seed; what compute they buy follows from the reference arm."""
    equal: Literal["time", "compute"] = "time"
    seeds: int = Field(1, ge=1)
    first_share: float = Field(0.3, gt=0, lt=1)
    """Of the budget that goes to stage 1, where there is one."""
    parameters: int = Field(1_500_000, ge=1)
    """Of every denoiser, about."""
    channels: int = Field(24, ge=8, multiple_of=8)
    """Of every autoencoder's first level."""
    perceptual: bool = False
    """Train stage 1 with the feature distance too, whose network is also the judge's: pixel space has no such help."""
    first_batch: int = Field(16, ge=1)
    batch: int = Field(32, ge=1)
    learning_rate: float = Field(1e-3, gt=0)
    points: int = Field(5, ge=1)
    """How often an arm is judged while it trains."""
    samples: int = Field(512, ge=2)
    """Pictures drawn for a judgement."""
    sampling_steps: tuple[int, ...] = Field((5, 10, 20, 50), min_length=1)
    precision: Precision = "auto"

    @model_validator(mode="after")
    def _factors_suit_the_size(self) -> Self:
        H, W = height_width(self.data)
        for f in self.factors:
            if f != 1 and f not in LATENT_CHANNELS:
                raise ValueError(f"factor {f} is not one of 1, {', '.join(map(str, LATENT_CHANNELS))}")
            if H % f or W % f or min(H, W) < 2 * f:
                raise ValueError(f"factor {f} leaves no latent of 2x2 of pictures of {H}x{W}: leave it out")
        if len(set(self.factors)) < len(self.factors):
            raise ValueError(f"factors {self.factors} name one twice")
        return self


@dataclass(frozen=True)
class Arm:
    """One training of a study."""

    factor: int
    seed: int

    @property
    def name(self) -> str:
        """The folder's."""
        return f"f{self.factor}-seed{self.seed}"


def arms(config: StudyConfig) -> list[Arm]:
    """All factors with the first seed, then with the next one: an unfinished study is still a comparison."""
    return [Arm(factor, seed) for seed in range(config.seeds) for factor in config.factors]


def reference(config: StudyConfig) -> int:
    """The factor whose pace turns the budget's time into compute: 4, or the middle one."""
    return 4 if 4 in config.factors else sorted(config.factors)[len(config.factors) // 2]


def first_run(config: StudyConfig, arm: Arm, steps: int, step_seconds: float = 1.0) -> AutoencoderRun | None:
    """Stage 1 of an arm; None in pixel space."""
    if arm.factor == 1:
        return None
    perceptual = EfficientNetConfig(weight=0.1) if config.perceptual else NoPerceptual()
    return AutoencoderRun(
        model=autoencoder_for(arm.factor, config.channels),
        data=config.data,
        held_out=config.held_out,
        loss=LossConfig(pixel="l2", kl_weight=1e-6, perceptual=perceptual),
        train=AutoencoderTraining(
            steps=steps,
            batch=config.first_batch,
            precision=config.precision,
            optimiser=_optimiser(config, steps),
            ema_decay=0.99,
            seed=arm.seed,
            log_every=max(1, steps // 50),
            preview_every=max(1, steps // 3),
            save_every=_save_every(steps, step_seconds),
        ),
    )


def second_run(
    config: StudyConfig, arm: Arm, latent: tuple[int, int, int], steps: int, step_seconds: float = 1.0
) -> DiffusionRun:
    """Stage 2 of an arm on latents (C, h, w)."""
    every = max(1, steps // config.points)
    return DiffusionRun(
        denoiser=denoiser_for(latent, config.parameters),
        schedule=LinearConfig(),
        objective=ObjectiveConfig(prediction="v", stratified=True),
        data=config.data,
        held_out=config.held_out,
        train=DiffusionTraining(
            steps=steps,
            batch=config.batch,
            precision=config.precision,
            optimiser=_optimiser(config, steps),
            ema_decay=0.99 if steps < 2000 else 0.998,
            seed=arm.seed,
            log_every=every,
            preview_every=every,
            save_every=_save_every(steps, step_seconds),
        ),
    )


def latent_of(config: StudyConfig, factor: int) -> tuple[int, int, int]:
    """(C, h, w) of the pictures at a factor."""
    H, W = height_width(config.data)
    return (LATENT_CHANNELS.get(factor, 3), H // factor, W // factor)


def _optimiser(config: StudyConfig, steps: int) -> OptimiserConfig:
    return OptimiserConfig(
        learning_rate=config.learning_rate, warmup_steps=max(1, min(100, steps // 10)), weight_decay=0.0
    )


def _save_every(steps: int, step_seconds: float) -> int:
    return max(1, min(steps, round(SAVE_SECONDS / max(step_seconds, 1e-4))))
