"""Changing an image as a whole: SDEdit (Meng et al. 2022), led by a prompt or by another image's statistics."""

from collections.abc import Sequence
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from sfumato.data.reading import to_rgb
from sfumato.errors import UserError
from sfumato.images import from_pil, pad_to_multiple, to_pil
from sfumato.model import LatentDiffusion
from sfumato.pipeline.conditions import Words, check_words, complete_fields, is_given, source_of
from sfumato.pipeline.parts import canvas_factor
from sfumato.pipeline.request import SampleRequest
from sfumato.tasks.parts import check_image_size, one_each
from sfumato.tasks.requests import Task, checked_options, run_tasks

STRENGTH = 0.6


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
    """The image noised and drawn again; RGB, of its own size.

    Args:
        model: a second stage conditioned on text, by classes, or by nothing.
        image: of any size; transparent parts count as white.
        prompt: what the image is to show.
        strength: how far back to noise: 0 gives the first stage's reconstruction, 1 forgets the image.
        style: an image whose latent's mean and spread per channel the start takes on (adaptive instance
            normalisation, Huang & Belongie 2017): its palette and contrast.
        style_amount: from 0 (none of it) to 1.
        label: for models conditioned on classes.
        negative: a text to guide away from.
        options: how to sample, as `task_options` makes them.

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
    """`edit` for many images, `options.batch` at once; a prompt for each. Otherwise as there."""
    options = checked_options(options)
    for name, value in (("strength", strength), ("style amount", style_amount)):
        if not 0 <= value <= 1:
            raise UserError(f"{name} is {value:g}: give a number from 0 to 1")
    led = None
    if style is not None:
        check_image_size(model, style.height, style.width, "the style image")
        other = model.encode(pad_to_multiple(_tensor(style), canvas_factor(model)), options.memory)
        led = (other, style_amount)
    words = [_words(prompt, label, negative) for prompt in one_each(prompts, len(images), "images")]
    for given in words:  # says what does not fit before anything is computed
        _check(model, given)
    tasks = [
        _task(model, image, given, strength, led, options.memory) for image, given in zip(images, words, strict=True)
    ]
    return run_tasks(model, tasks, options)


def _task(
    model: LatentDiffusion,
    image: Image.Image,
    words: dict[str, Any],
    strength: float,
    style: tuple[Tensor, float] | None,
    memory: int,
) -> Task[Image.Image]:
    """style: a latent whose statistics the start takes on, and how much of them."""
    H, W = image.height, image.width
    check_image_size(model, H, W)
    whole = pad_to_multiple(_tensor(image), canvas_factor(model))
    size = (whole.shape[2], whole.shape[3])
    latent = model.encode(whole, memory)
    if style is not None:
        latent = with_statistics(latent, *style)
    request = SampleRequest(**words, count=1, size=size, initial=latent, strength=strength)
    return Task(request, lambda canvas: to_pil(canvas[:, :H, :W]))


def _words(prompt: str | None, label: int | str | None, negative: str | None) -> dict[str, Any]:
    return {"prompt": prompt, "label": label, "negative": negative}


def _check(model: LatentDiffusion, words: dict[str, Any]) -> None:
    """Raises UserError for words that the model does not take, or lacks."""
    source = source_of(model)
    given = Words(*([value] if value is not None else None for value in words.values()))
    check_words(source, given)
    if source.conditioner is not None and (source.dropout == 0 or is_given(given, None)):
        complete_fields(source, 1, given)


def with_statistics(latent: Tensor, other: Tensor, amount: float = 1.0) -> Tensor:
    """The latent (B, C, h, w) with the mean and spread per channel of another; `amount` mixes with its own."""
    axes = (-2, -1)
    mean, std = latent.mean(axes, keepdim=True), latent.std(axes, keepdim=True)
    moved = (latent - mean) / std.clamp_min(1e-6) * other.std(axes, keepdim=True) + other.mean(axes, keepdim=True)
    return torch.lerp(latent, moved, amount)


def _tensor(image: Image.Image) -> Tensor:
    return from_pil(to_rgb(image, (255, 255, 255)))[None]
