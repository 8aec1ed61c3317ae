"""Editing an image as a whole: SDEdit (Meng et al. 2022), guided by a prompt or by another image's statistics."""

from collections.abc import Sequence
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from sfumato.data.reading import to_rgb
from sfumato.errors import UserError
from sfumato.images import from_pil, pad_to_multiple, to_pil
from sfumato.model import LatentDiffusion
from sfumato.pipeline.conditions import ConditionInputs, check_inputs, complete_fields, has_condition, source_of
from sfumato.pipeline.parts import canvas_factor
from sfumato.pipeline.request import DEFAULT_MEMORY, SampleRequest
from sfumato.pipeline.task_options import STRENGTH
from sfumato.tasks.parts import check_image_size, one_each
from sfumato.tasks.requests import Task, checked_options, run_tasks


def edit(
    model: LatentDiffusion,
    image: Image.Image,
    prompt: str | None = None,
    *,
    strength: float = STRENGTH,
    style: Image.Image | None = None,
    style_amount: float = 1.0,
    label: int | str | None = None,
    negative: str | None = None,
    options: SampleRequest | None = None,
) -> list[Image.Image]:
    """The image noised and sampled again; RGB, of the same size.

    Args:
        model: a second stage conditioned on text, by classes, or by nothing.
        image: of any size; transparent parts become white.
        prompt: a description of the result.
        strength: amount of noise: 0 gives the first stage's reconstruction, 1 ignores the image.
        style: an image whose latent's mean and standard deviation per channel the start receives (adaptive instance
            normalisation, Huang & Belongie 2017): its palette and contrast.
        style_amount: from 0 (none of it) to 1.
        label: for models conditioned on classes.
        negative: a text to guide away from.
        options: sampling options, see `task_options`.

    Raises:
        UserError: for a strength or an amount outside [0, 1], and options that do not fit the model.
    """
    prompts = None if prompt is None else [prompt]
    return edit_each(
        model,
        [image],
        prompts,
        strength=strength,
        style=style,
        style_amount=style_amount,
        label=label,
        negative=negative,
        options=options,
    )


def edit_each(
    model: LatentDiffusion,
    images: Sequence[Image.Image],
    prompts: Sequence[str] | None = None,
    *,
    strength: float = STRENGTH,
    style: Image.Image | None = None,
    style_amount: float = 1.0,
    label: int | str | None = None,
    negative: str | None = None,
    options: SampleRequest | None = None,
) -> list[Image.Image]:
    """`edit` for many images, `options.batch` at once, with a prompt for each. Otherwise as there."""
    options = checked_options(options)
    tasks = editing_tasks(
        model,
        images,
        prompts,
        strength=strength,
        style=style,
        style_amount=style_amount,
        label=label,
        negative=negative,
        memory=options.memory,
    )
    return run_tasks(model, tasks, options)


def editing_tasks(
    model: LatentDiffusion,
    images: Sequence[Image.Image],
    prompts: Sequence[str] | None = None,
    *,
    strength: float = STRENGTH,
    style: Image.Image | None = None,
    style_amount: float = 1.0,
    label: int | str | None = None,
    negative: str | None = None,
    memory: int = DEFAULT_MEMORY,
) -> list[Task[Image.Image]]:
    """The tasks of `edit_each`, not yet run."""
    for name, value in (("strength", strength), ("style amount", style_amount)):
        if not 0 <= value <= 1:
            raise UserError(f"{name} is {value:g}: give a number from 0 to 1")
    statistics = None
    if style is not None:
        check_image_size(model, style.height, style.width, "the style image")
        other = model.encode(pad_to_multiple(_tensor(style), canvas_factor(model)), memory)
        statistics = (other, style_amount)
    conditioning = [_conditioning(prompt, label, negative) for prompt in one_each(prompts, len(images), "images")]
    for each in conditioning:  # errors before anything is computed
        _check(model, each)
    return [
        _task(model, image, each, strength, statistics, memory)
        for image, each in zip(images, conditioning, strict=True)
    ]


def _task(
    model: LatentDiffusion,
    image: Image.Image,
    conditioning: dict[str, Any],
    strength: float,
    style: tuple[Tensor, float] | None,
    memory: int,
) -> Task[Image.Image]:
    """style: a latent whose statistics the start receives, and the amount."""
    H, W = image.height, image.width
    check_image_size(model, H, W)
    whole = pad_to_multiple(_tensor(image), canvas_factor(model))
    size = (whole.shape[2], whole.shape[3])
    latent = model.encode(whole, memory)
    if style is not None:
        latent = with_statistics(latent, *style)
    request = SampleRequest(**conditioning, count=1, size=size, initial=latent, strength=strength)
    return Task(request, lambda canvas: to_pil(canvas[:, :H, :W]))


def _conditioning(prompt: str | None, label: int | str | None, negative: str | None) -> dict[str, Any]:
    return {"prompt": prompt, "label": label, "negative": negative}


def _check(model: LatentDiffusion, conditioning: dict[str, Any]) -> None:
    """Raises UserError for conditioning that does not fit the model."""
    source = source_of(model)
    inputs = ConditionInputs(*([value] if value is not None else None for value in conditioning.values()))
    check_inputs(source, inputs)
    if source.conditioner is not None and (source.dropout == 0 or has_condition(inputs, None)):
        complete_fields(source, 1, inputs)


def with_statistics(latent: Tensor, other: Tensor, amount: float = 1.0) -> Tensor:
    """The latent (B, C, h, w) with the mean and standard deviation per channel of another; `amount` interpolates from
    its own."""
    axes = (-2, -1)
    mean, std = latent.mean(axes, keepdim=True), latent.std(axes, keepdim=True)
    moved = (latent - mean) / std.clamp_min(1e-6) * other.std(axes, keepdim=True) + other.mean(axes, keepdim=True)
    return torch.lerp(latent, moved, amount)


def _tensor(image: Image.Image) -> Tensor:
    return from_pil(to_rgb(image, (255, 255, 255)))[None]
