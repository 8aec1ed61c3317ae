"""The configuration of a training of stage 1."""

from pathlib import Path
from typing import ClassVar, Literal, Self

from pydantic import model_validator

from sfumato.autoencoder import losses
from sfumato.autoencoder.discriminator import smallest_image
from sfumato.autoencoder.latent_changes import smallest_latent
from sfumato.autoencoder.losses import LossConfig
from sfumato.autoencoder.model import SMALLEST_REFLECTED, AutoencoderConfig
from sfumato.data.table import DataConfig
from sfumato.schema import Schema
from sfumato.training.data import HeldOut, check_step, height_width, sizes_of
from sfumato.training.optim import OptimiserConfig
from sfumato.training.settings import Count, Threads, WholeNetworks


class AutoencoderTraining(WholeNetworks):
    """Length and settings of the training; a step uses batch · accumulate · processes images."""

    small: ClassVar[str] = ", and one of stage 1 has few parameters (the paper's at most 84 M: 1.7 GB in each process)"

    workers: Threads = 2
    part: Literal["whole", "decoder"] = "whole"
    """decoder: encoder and bottleneck stay as they are in `start`, so that second stages trained on these latents keep
    working; `sfumato replace-decoder` puts the new decoder into them."""
    discriminator: OptimiserConfig = OptimiserConfig()
    preview_images: Count = 64


class AutoencoderRun(Schema):
    """The configuration of `sfumato train autoencoder`."""

    model: AutoencoderConfig
    data: DataConfig
    held_out: HeldOut = HeldOut()
    loss: LossConfig = LossConfig()
    train: AutoencoderTraining = AutoencoderTraining()
    start: Path | None = None
    """A model folder or run whose autoencoder's weights are the initial ones, instead of random ones."""

    @model_validator(mode="after")
    def _factor_divides_size(self) -> Self:
        if self.model.bottleneck.kind == "pixels":
            raise ValueError(
                "model.bottleneck.kind pixels has nothing to train: train stage 2 with --autoencoder pixels"
            )
        height, width = height_width(self.data)
        check_step(self.data, self.model.factor, f"f = {self.model.factor}, which model.channel_multipliers sets")
        if height % self.model.factor or width % self.model.factor:
            raise ValueError(
                f"data.size {height}x{width} is not a multiple of f = {self.model.factor}, "
                "which model.channel_multipliers sets; change either"
            )
        if self.model.padding == "reflect" and min(height, width) < SMALLEST_REFLECTED * self.model.factor:
            raise ValueError(
                f"data.size {height}x{width} leaves a latent that model.padding reflect cannot mirror: give images of "
                f"{SMALLEST_REFLECTED * self.model.factor} pixels or more, or padding zeros"
            )
        if self.train.part == "decoder" and self.start is None:
            raise ValueError("train.part is decoder, but start is not set: name the model whose encoder is kept")
        return self

    @model_validator(mode="after")
    def _latents_can_change(self) -> Self:
        for name, value in losses.changing_latents(self.loss).items():
            if self.train.part == "decoder" and value > 0:
                raise ValueError(
                    f"loss.{name} changes the latents, which train.part decoder keeps: set it to 0, or train.part to "
                    "whole"
                )
        if self.loss.alignment.weight > 0 and self.model.image_channels not in (1, 3):
            raise ValueError(
                f"loss.alignment needs images of 1 or 3 channels, not {self.model.image_channels}: set its weight to 0"
            )
        equivariance, f, sizes = self.loss.equivariance, self.model.factor, sizes_of(self.data)
        side = min(side for H, W in sizes for side in smallest_latent(equivariance, (H // f, W // f))) * f
        needed = smallest_image(self.loss.adversarial.layers)
        if self.loss.adversarial.weight > 0 and side < needed and side < min(map(min, sizes)):
            raise ValueError(
                f"loss.equivariance.smallest = {equivariance.smallest:g} asks for images of {side} pixels, and a "
                f"discriminator of {self.loss.adversarial.layers} layers needs {needed}: raise it, or lower "
                "loss.adversarial.layers"
            )
        return self

    @property
    def latent_size(self) -> tuple[int, int]:
        """(h, w)"""
        height, width = height_width(self.data)
        return height // self.model.factor, width // self.model.factor
