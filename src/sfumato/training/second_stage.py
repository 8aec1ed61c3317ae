"""Putting the second stage together: tokenizer, conditioner, denoiser, and the scaling of the cached latents."""

from collections.abc import Sequence

import torch

from sfumato import rng
from sfumato.conditioning.class_label import ClassEmbedder
from sfumato.conditioning.condition import Conditioner, ConditionSpec
from sfumato.conditioning.table import ConditionerConfig, build_conditioner, text_config
from sfumato.conditioning.tokenizer import fit_tokenizer
from sfumato.data.latents import LatentDataset
from sfumato.denoiser.table import build_denoiser
from sfumato.diffusion.schedule import build_schedule
from sfumato.errors import UserError
from sfumato.model import DiffusionConfig, LatentDiffusion, ModelConfig, SecondStage
from sfumato.training.data import height_width
from sfumato.training.diffusion import DiffusionRun, Steered
from sfumato.training.encode import measured_scaling


def check_sizes(config: DiffusionRun, first: LatentDiffusion) -> None:
    """Raises UserError where the pictures' size does not suit the two networks; needs no data."""
    check_factor(height_width(config.data), config.denoiser.factor, "denoiser.channel_multipliers", first)


def check_factor(size: tuple[int, int], factor: int, key: str, first: LatentDiffusion) -> None:
    """Raises UserError where latents of pictures of size (H, W) are no multiples of a factor that `key` sets."""
    _, h, w = first.latent_shape_of(size)
    if h % factor or w % factor:
        raise UserError(
            f"data.size {size[0]}x{size[1]} gives latents of {h}x{w}, not multiples of {factor}, which "
            f"{key} sets: take a multiple of {factor * first.autoencoder.factor} or fewer levels"
        )


def begin(config: DiffusionRun, first: LatentDiffusion, latents: LatentDataset) -> LatentDiffusion:
    """The model to train: the first stage as it is, a second with weights drawn from the run's seed.

    Raises UserError where the data lacks a field that the conditioner reads, or the two do not suit each other.
    """
    tokenizer = _tokenizer(config.conditioner, latents.captions())
    with rng.seeded(config.train.seed, "weights", "diffusion", device=torch.device("cpu")):
        conditioner = build_conditioner(config.conditioner, tokenizer)
        spec = ConditionSpec() if conditioner is None else conditioner.spec
        denoiser = build_denoiser(config.denoiser, first.autoencoder.latent_channels, spec)
    if conditioner is not None:
        _check_fields(conditioner.reads, latents.fields)
        _check_conditioner(conditioner, config, latents.classes)
    described = ModelConfig(
        autoencoder=first.config.autoencoder,
        image_size=height_width(config.data),
        classes=latents.classes,
        diffusion=DiffusionConfig(
            denoiser=config.denoiser,
            conditioner=config.conditioner,
            schedule=config.schedule,
            prediction=config.objective.prediction,
            condition_dropout=0.0 if conditioner is None else config.train.condition_dropout,
        ),
        about=first.config.about,
    )
    assert described.diffusion is not None
    second = SecondStage(described.diffusion, denoiser, conditioner, build_schedule(config.schedule))
    return LatentDiffusion(described, first.autoencoder, measured_scaling(latents), second)


def steered(model: LatentDiffusion) -> Steered:
    """Denoiser and conditioner as the loop trains them."""
    assert model.second is not None
    return Steered(model.second.denoiser, model.second.conditioner)


def _tokenizer(config: ConditionerConfig, captions: Sequence[str] | None) -> str | None:
    """A tokenizer fitted on the captions, where the conditioner asks for one."""
    part = text_config(config)
    if part is None or part.tokenizer != "fitted":
        return None
    if captions is None:
        raise UserError(
            "conditioner.kind is text, but the data has no captions: add metadata.jsonl with a text column or "
            ".txt files beside the images, set data.text_from=label, or choose conditioner.kind class or none"
        )
    return fit_tokenizer(captions, part.vocabulary)


def _check_fields(reads: Sequence[str], fields: Sequence[str]) -> None:
    missing = [name for name in reads if name not in fields]
    if missing:
        has = ", ".join(fields) or "none"
        raise UserError(
            f"the conditioner reads {missing[0]!r}, but the data has the fields {has}: choose another conditioner"
        )


def _check_conditioner(conditioner: Conditioner, config: DiffusionRun, classes: Sequence[str] | None) -> None:
    if config.train.condition_dropout > 0:
        try:
            conditioner.null(1, (config.denoiser.factor, config.denoiser.factor))
        except ValueError as error:
            raise UserError(f"{error}; or set train.condition_dropout to 0") from None
    for part in conditioner.modules():
        if isinstance(part, ClassEmbedder) and classes is not None and len(classes) > part.config.classes:
            raise UserError(
                f"the data has {len(classes)} classes, the conditioner {part.config.classes}: "
                f"set conditioner.classes={len(classes)}"
            )
