"""Super-resolution of images of any size by a model conditioned on small images (section 4.4 of the paper)."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from sfumato.data.reading import to_rgb
from sfumato.errors import UserError
from sfumato.images import from_pil, pad_to_multiple, to_pil
from sfumato.model import LatentDiffusion
from sfumato.pipeline.parts import second_stage
from sfumato.pipeline.request import SampleRequest
from sfumato.tasks.colour import drift
from sfumato.tasks.parts import image_part, one_each
from sfumato.tasks.requests import Task, checked_options, run_tasks

SMALL = "low_resolution"
DRIFT_CELL = 4
"""Cell of the small image, in pixels, over which colours are matched."""


def upscale(
    model: LatentDiffusion,
    image: Image.Image,
    prompt: str | None = None,
    *,
    keep_colours: bool = True,
    options: SampleRequest | None = None,
) -> list[Image.Image]:
    """The image enlarged by the model's factor (see `enlargement`).

    Large ones are sampled in overlapping windows of the training size, which share their noise and are averaged at
    every step. Grey images stay grey, and transparency is enlarged separately.

    Args:
        model: a second stage conditioned on small images.
        image: of any size and mode.
        prompt: for models conditioned on text as well.
        keep_colours: remove the smooth drift of colours against the small image.
        options: sampling options, see `task_options`.

    Raises:
        UserError: for a model without super-resolution, and options that do not fit it.
    """
    prompts = None if prompt is None else [prompt]
    return upscale_each(model, [image], prompts, keep_colours=keep_colours, options=options)


def upscale_each(
    model: LatentDiffusion,
    images: Sequence[Image.Image],
    prompts: Sequence[str] | None = None,
    *,
    keep_colours: bool = True,
    options: SampleRequest | None = None,
) -> list[Image.Image]:
    """`upscale` for many images, `options.batch` at once, with a prompt for each. Otherwise as there."""
    options = checked_options(options)
    return run_tasks(model, upscaling_tasks(model, images, prompts, keep_colours=keep_colours), options)


def upscaling_tasks(
    model: LatentDiffusion,
    images: Sequence[Image.Image],
    prompts: Sequence[str] | None = None,
    *,
    keep_colours: bool = True,
) -> list[Task[Image.Image]]:
    """The tasks of `upscale_each`, not yet run."""
    prompted = zip(images, one_each(prompts, len(images), "images"), strict=True)
    return [_task(model, image, prompt, keep_colours) for image, prompt in prompted]


def _task(model: LatentDiffusion, image: Image.Image, prompt: str | None, keep_colours: bool) -> Task[Image.Image]:
    part = image_part(model, SMALL, "small images")
    if part.channels != 3:
        raise UserError(f"this model's small images have {part.channels} channels: they are not RGB images")
    factor = enlargement(model)
    small = from_pil(to_rgb(image, (255, 255, 255)))[None]
    size = (image.height * factor, image.width * factor)
    resized = at_latent_size(model, small, factor)
    canvas = pad_to_multiple(resized, second_stage(model).config.denoiser.factor)
    f = model.autoencoder.factor
    shape = (canvas.shape[2] * f, canvas.shape[3] * f)
    fields = {SMALL: canvas.to(model.device)}

    def finish(sampled: Tensor) -> Image.Image:
        pil_image = sampled[None, :, : resized.shape[2] * f, : resized.shape[3] * f]
        if pil_image.shape[-2:] != size:
            pil_image = F.interpolate(pil_image, size=size, mode="bicubic", antialias=True)
        if keep_colours:
            pil_image = with_colours_of(pil_image, small)
        return _as_mode(to_pil(pil_image[0]), image)

    return Task(SampleRequest(prompt=prompt, count=1, size=shape, fields=fields), finish)


def enlargement(model: LatentDiffusion) -> int:
    """The factor of an image's sides: from the model's metadata, else f, the factor of its small images."""
    known = model.config.conditioning_metadata.low_resolution
    return model.autoencoder.factor if known is None else known.factor


def at_latent_size(model: LatentDiffusion, small: Tensor, factor: int) -> Tensor:
    """The small image (1, 3, h, w) at the latent's size, as the model reads it; unchanged where factor = f."""
    f = model.autoencoder.factor
    if factor == f:
        return small
    size = [max(1, -(-side * factor // f)) for side in small.shape[-2:]]
    return F.interpolate(small, size=size, mode="bicubic", antialias=True).clamp(-1, 1)


def with_colours_of(pil_image: Tensor, small: Tensor) -> Tensor:
    """The large image (1, 3, H, W) with the small one's colours: the smooth part of their difference is removed."""
    difference = small - F.interpolate(pil_image, size=small.shape[-2:], mode="bilinear", antialias=True)
    slow = drift(difference, torch.ones_like(small[:, :1]), DRIFT_CELL)
    return pil_image + F.interpolate(slow, size=pil_image.shape[-2:], mode="bilinear")


def _as_mode(pil_image: Image.Image, small: Image.Image) -> Image.Image:
    """Grey where the small one is grey, with its alpha enlarged."""
    grey = small.mode in ("1", "L", "LA", "I", "I;16", "F")
    converted = pil_image.convert("L") if grey else pil_image
    if small.has_transparency_data:
        alpha = small.convert("RGBA").getchannel("A").resize(pil_image.size, Image.Resampling.BICUBIC)
        converted = converted.convert("LA" if grey else "RGBA")
        converted.putalpha(alpha)
    return converted
