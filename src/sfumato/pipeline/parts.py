"""The interface of a model to the pipeline: its parts and its configuration."""

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import nn

from sfumato.autoencoder.model import Autoencoder
from sfumato.autoencoder.scaling import Scaling
from sfumato.autoencoder.tiny import TinyDecoder
from sfumato.autoencoder.tiny_file import DistilledDecoder
from sfumato.conditioning.condition import Conditioner
from sfumato.diffusion.schedule import Schedule
from sfumato.errors import UserError
from sfumato.model_config import DiffusionConfig, ModelConfig


@dataclass(frozen=True)
class SecondStage:
    """The diffusion model on top of the autoencoder."""

    config: DiffusionConfig
    denoiser: nn.Module
    conditioner: Conditioner | None
    schedule: Schedule


class Model(Protocol):
    """A trained model's parts; `sfumato.model.LatentDiffusion` is one."""

    @property
    def config(self) -> ModelConfig: ...

    @property
    def autoencoder(self) -> Autoencoder: ...

    @property
    def scaling(self) -> Scaling: ...

    @property
    def second(self) -> SecondStage | None: ...

    @property
    def tiny(self) -> DistilledDecoder | None: ...

    @property
    def device(self) -> torch.device: ...

    @property
    def digest(self) -> str: ...


def second_stage(model: Model) -> SecondStage:
    """The diffusion model of a model. Raises UserError where it is an autoencoder only."""
    if model.second is None:
        raise UserError("this model is an autoencoder only: train a diffusion model on it to sample images")
    return model.second


def tiny_decoder(model: Model) -> TinyDecoder:
    """The decoder for previews. Raises UserError where the model has none."""
    if model.tiny is None:
        raise UserError(
            "this model has no tiny decoder: create one with `sfumato distill-decoder MODEL --data DIR`, which takes "
            "minutes, or use the full decoder"
        )
    return model.tiny.network


def latent_shape(model: Model, size: tuple[int, int]) -> tuple[int, int, int]:
    """(C, h, w) of images of size (H, W). Raises UserError where f does not divide them."""
    f = model.autoencoder.factor
    check_multiple(size, f, f"f = {f}, this model's downsampling factor")
    return (model.autoencoder.latent_channels, size[0] // f, size[1] // f)


def canvas_factor(model: Model) -> int:
    """The product of both networks' downsampling factors, which must divide the sides of an image."""
    return model.autoencoder.factor * second_stage(model).config.denoiser.factor


def check_multiple(size: tuple[int, int], factor: int, described: str) -> None:
    """Raises UserError for a size (H, W) that is not a multiple of the factor; `described` names it in the message."""
    if min(size) < factor or size[0] % factor or size[1] % factor:
        near = [max(factor, round(side / factor) * factor) for side in size]
        raise UserError(
            f"size {size[0]}x{size[1]} (height x width) is not a multiple of {described}; the nearest is "
            f"{near[0]}x{near[1]}"
        )
