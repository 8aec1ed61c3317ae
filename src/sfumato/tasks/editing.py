"""Changing a picture as a whole: SDEdit (Meng et al. 2022), led by a prompt or by another picture's statistics."""

from collections.abc import Sequence

import torch
from PIL import Image
from torch import Tensor

from sfumato.data.reading import to_rgb
from sfumato.errors import UserError
from sfumato.model import LatentDiffusion
from sfumato.pictures import from_pil, padded, to_pil
from sfumato.tasks.drawing import Order, Start, check_picture, check_settings, draw_all, encode, grain
from sfumato.tasks.settings import Settings
from sfumato.tasks.steering import Words, one_each, steer

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
    settings: Settings | None = None,
) -> list[Image.Image]:
    """The picture noised and drawn again; RGB, of its own size.

    Args:
        model: a second stage steered by text, by classes, or by nothing.
        image: of any size; transparent parts count as white.
        prompt: what the picture is to show.
        strength: how far back to noise: 0 gives the first stage's reconstruction, 1 forgets the picture.
        style: a picture whose latent's mean and spread per channel the start takes on (adaptive instance
            normalisation, Huang & Belongie 2017): its palette and contrast.
        style_amount: from 0 (none of it) to 1.
        label: for models steered by classes.
        negative: a text to lead away from.
        settings: how to sample.

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
        settings=settings,
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
    settings: Settings | None = None,
) -> list[Image.Image]:
    """`edit` for many pictures, `settings.batch` at once; a prompt for each. Otherwise as there."""
    settings = settings or Settings()
    check_settings(settings)
    for name, value in (("strength", strength), ("style amount", style_amount)):
        if not 0 <= value <= 1:
            raise UserError(f"{name} is {value:g}: give a number from 0 to 1")
    led = None
    if style is not None:
        check_picture(model, style.height, style.width, "the style picture")
        other = model.scaling.to_model(encode(model, padded(_tensor(style), grain(model)), settings.memory))
        led = (other, style_amount)
    prompted = zip(images, one_each(prompts, len(images), "pictures"), strict=True)
    orders = [
        _order(model, image, Words(prompt, label, negative), strength, led, settings.memory)
        for image, prompt in prompted
    ]
    return draw_all(model, orders, settings)


def _order(
    model: LatentDiffusion,
    image: Image.Image,
    words: Words,
    strength: float,
    style: tuple[Tensor, float] | None,
    memory: int,
) -> Order[Image.Image]:
    """style: a latent whose statistics the start takes on, and how much of them."""
    H, W = image.height, image.width
    check_picture(model, H, W)
    whole = padded(_tensor(image), grain(model))
    size = (whole.shape[2], whole.shape[3])
    steer(model, {}, words, model.latent_shape_of(size)[1:])  # says what does not fit before anything is computed
    latent = model.scaling.to_model(encode(model, whole, memory))
    if style is not None:
        latent = with_statistics(latent, *style)
    return Order(size, {}, words, lambda canvas: to_pil(canvas[:, :H, :W]), start=Start(latent, strength))


def with_statistics(latent: Tensor, other: Tensor, amount: float = 1.0) -> Tensor:
    """The latent (B, C, h, w) with the mean and spread per channel of another; `amount` mixes with its own."""
    axes = (-2, -1)
    mean, std = latent.mean(axes, keepdim=True), latent.std(axes, keepdim=True)
    moved = (latent - mean) / std.clamp_min(1e-6) * other.std(axes, keepdim=True) + other.mean(axes, keepdim=True)
    return torch.lerp(latent, moved, amount)


def _tensor(image: Image.Image) -> Tensor:
    return from_pil(to_rgb(image, (255, 255, 255)))[None]
