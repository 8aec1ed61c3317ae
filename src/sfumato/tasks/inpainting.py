"""Inpainting: by a model trained for it (section 4.5 of the paper), or by any other with the known region replaced."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeVar

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from sfumato.conditioning.metadata import MaskInput
from sfumato.conditioning.spatial import ImageConfig
from sfumato.counts import how_many
from sfumato.data.masks import is_black_and_white, read_mask
from sfumato.data.profiles import in_srgb
from sfumato.data.reading import to_rgb
from sfumato.errors import UserError
from sfumato.images import from_pil, pad_to_multiple
from sfumato.model import LatentDiffusion
from sfumato.pipeline import latents as codec
from sfumato.pipeline.options import Range, check_number
from sfumato.pipeline.parts import canvas_factor
from sfumato.pipeline.plan import WHOLE_AREAS
from sfumato.pipeline.request import DEFAULT_MEMORY, SampleRequest
from sfumato.pipeline.task_options import FEATHER
from sfumato.tasks.colour import drift, without_drift
from sfumato.tasks.compositing import composite
from sfumato.tasks.parts import check_image_size, condition_parts, one_each
from sfumato.tasks.requests import Task, checked_options, run_tasks

T = TypeVar("T")

MASKED, MASK = "masked_latent", "mask"
FILLS = {"black": -1.0, "grey": 0.0}
STABLE_DIFFUSION = MaskInput(keep=0.0, hole=1.0, fill="grey")
"""Its inpainting models read the mask before the masked image, whose latent is scaled."""


@dataclass(frozen=True)
class Convention:
    """The format of a model's masked image: the mask's values, the fill of the hole, whether the latent is scaled."""

    values: MaskInput
    scaled: bool


def inpaint(
    model: LatentDiffusion,
    image: Image.Image,
    mask: Image.Image,
    prompt: str | None = None,
    *,
    label: int | str | None = None,
    negative: str | None = None,
    feather: int = FEATHER,
    jumps: tuple[int, int] | None = None,
    options: SampleRequest | None = None,
) -> list[Image.Image]:
    """The image with its hole filled in; outside the hole it is unchanged, with its size, mode, palette and alpha.

    A model that reads `masked_latent` and `mask` generates the hole; any other samples the whole image while the known
    part is replaced at every step.

    Args:
        model: a second stage not conditioned on maps, boxes or small images.
        image: of any size and mode; a colour profile is converted to sRGB first.
        mask: of the same size; white is the hole; for other forms see `sfumato.data.masks.read_mask`.
        prompt: for models conditioned on text.
        label: for models conditioned on classes.
        negative: a text to guide away from.
        feather: pixels, from the hole's edge inwards, over which original and generated pixels are blended.
        jumps: (length, repeats) of RePaint's resampling, for models that were not trained to inpaint.
        options: sampling options, see `task_options`.

    Raises:
        UserError: for a mask of another size, without a hole or that is not a mask, and options that do not fit the
            model.
    """
    prompts = None if prompt is None else [prompt]
    return inpaint_each(
        model,
        [image],
        [mask],
        prompts,
        label=label,
        negative=negative,
        feather=feather,
        jumps=jumps,
        options=options,
    )


def inpaint_each(
    model: LatentDiffusion,
    images: Sequence[Image.Image],
    masks: Sequence[Image.Image],
    prompts: Sequence[str] | None = None,
    *,
    label: int | str | None = None,
    negative: str | None = None,
    feather: int = FEATHER,
    jumps: tuple[int, int] | None = None,
    options: SampleRequest | None = None,
) -> list[Image.Image]:
    """`inpaint` for many images, `options.batch` at once, with a mask and a prompt for each. Otherwise as there."""
    options = checked_options(options)
    tasks = inpainting_tasks(
        model,
        images,
        masks,
        prompts,
        label=label,
        negative=negative,
        feather=feather,
        jumps=jumps,
        memory=options.memory,
    )
    return run_tasks(model, tasks, options)


def inpainting_tasks(
    model: LatentDiffusion,
    images: Sequence[Image.Image],
    masks: Sequence[Image.Image],
    prompts: Sequence[str] | None = None,
    *,
    label: int | str | None = None,
    negative: str | None = None,
    feather: int = FEATHER,
    jumps: tuple[int, int] | None = None,
    memory: int = DEFAULT_MEMORY,
) -> list[Task[Image.Image]]:
    """The tasks of `inpaint_each`, not yet run."""
    if len(masks) != len(images):
        raise UserError(f"{how_many(len(masks), 'mask')} for {how_many(len(images), 'image')}: give one for each")
    if jumps is not None and reads_masks(model):
        raise UserError("jumps are for models that were not trained to inpaint; this one was: leave them out")
    tasks = []
    for image, mask, prompt in zip(images, masks, one_each(prompts, len(images), "images"), strict=True):
        hole = hole_of(mask, image)
        image, _ = in_srgb(image)
        check_feather(feather, image)
        check_image_size(model, image.height, image.width)
        then = partial(composite, image, hole=hole, feather=feather)
        pixels = from_pil(to_rgb(image, (255, 255, 255)))
        conditioning = {"prompt": prompt, "label": label, "negative": negative}
        tasks.append(filling(model, pixels, hole, conditioning, jumps, memory, then))
    return tasks


def check_feather(feather: int, image: Image.Image) -> None:
    """Raises UserError for a number of pixels below 0 or beyond the image."""
    check_number("feather", feather, Range(0, max(image.size), whole=True))


def filling(
    model: LatentDiffusion,
    image: Tensor,
    hole: Tensor,
    conditioning: dict[str, Any],
    jumps: tuple[int, int] | None,
    memory: int,
    then: Callable[[Tensor], T],
) -> Task[T]:
    """The task of filling the hole (H, W) bool of an image (3, H, W); elsewhere the result is approximately the image.

    Of an image of more than WHOLE_AREAS times the training area only the hole and its surroundings are used. `then`
    converts the filled image (3, H, W) to the result.
    """
    if hole.numel() <= WHOLE_AREAS * math.prod(model.config.image_size):
        return _filling(model, image, hole, conditioning, jumps, memory, then)
    rows, columns = surroundings(hole, model.config.image_size)

    def put_back(part: Tensor) -> T:
        whole = image.clone()
        whole[:, rows, columns] = part
        return then(whole)

    return _filling(model, image[:, rows, columns], hole[rows, columns], conditioning, jumps, memory, put_back)


def surroundings(hole: Tensor, context: tuple[int, int]) -> tuple[slice, slice]:
    """Rows and columns of the hole (H, W) with half of `context` (H, W) on each side, within the image."""
    ranges = []
    for axis, side in enumerate(context):
        touched = hole.any(1 - axis).nonzero().flatten()
        start, stop = int(touched[0]), int(touched[-1]) + 1
        ranges.append(slice(max(0, start - side // 2), min(hole.shape[axis], stop + side // 2)))
    return ranges[0], ranges[1]


def _filling(
    model: LatentDiffusion,
    image: Tensor,
    hole: Tensor,
    conditioning: dict[str, Any],
    jumps: tuple[int, int] | None,
    memory: int,
    then: Callable[[Tensor], T],
) -> Task[T]:
    H, W = hole.shape
    whole = pad_to_multiple(image[None], canvas_factor(model))
    gone = pad_to_multiple(hole[None, None].float(), canvas_factor(model))
    cells = F.max_pool2d(gone, model.autoencoder.factor)
    # the content of the hole must not affect the latents around it
    plain = torch.where(gone > 0, drift(whole, 1 - gone), whole)
    fields: dict[str, Any]
    if reads_masks(model):
        fields = {"fields": masked_fields(model, whole, gone, cells, memory)}
    else:
        fields = {"known": model.encode(plain, memory), "keep": 1 - cells.to(model.device), "jumps": jumps}

    def finish(sampled: Tensor) -> T:
        corrected = without_drift(sampled[None], whole, 1 - gone)
        return then(corrected[0, :, :H, :W].clamp(-1, 1))

    return Task(SampleRequest(**conditioning, **fields, count=1, size=(whole.shape[2], whole.shape[3])), finish)


def reads_masks(model: LatentDiffusion) -> bool:
    """Whether the model was trained to inpaint."""
    return any(isinstance(part, ImageConfig) and part.field == MASKED for part in condition_parts(model))


def masked_fields(model: LatentDiffusion, image: Tensor, hole: Tensor, cells: Tensor, memory: int) -> dict[str, Any]:
    """The fields `masked_latent` and `mask` of an image (1, 3, H, W), its hole (1, 1, H, W) and the hole's cells."""
    use = convention(model)
    masked = torch.where(hole > 0, FILLS[use.values.fill], image)
    latent = model.encode(masked, memory) if use.scaled else raw_latent(model, masked, memory)
    values = torch.where(cells > 0, use.values.hole, use.values.keep)
    return {MASKED: latent, MASK: values.to(model.device)}


def raw_latent(model: LatentDiffusion, image: Tensor, memory: int) -> Tensor:
    """Image (1, 3, H, W) in [-1, 1] -> raw latent (1, C, h, w), which the original's inpainting models read."""
    return codec.encode_raw(model.autoencoder, image.to(model.device), memory)


def convention(model: LatentDiffusion) -> Convention:
    """From the model's configuration, else by its kind."""
    if model.config.conditioning_metadata.mask is not None:
        return Convention(model.config.conditioning_metadata.mask, scaled=False)
    order = [part.field for part in condition_parts(model) if isinstance(part, ImageConfig)]
    if order[:1] == [MASK]:
        return Convention(STABLE_DIFFUSION, scaled=True)
    return Convention(MaskInput(), scaled=False)


def hole_of(mask: Image.Image, image: Image.Image) -> Tensor:
    """(H, W) bool, see `sfumato.data.masks.read_mask`. UserError for a size other than the image's, or not a mask."""
    return mask_of(mask, image)[0]


def mask_of(mask: Image.Image, image: Image.Image) -> tuple[Tensor, tuple[str, ...]]:
    """As `hole_of`, with notes on how the mask was read."""
    if mask.size != image.size:
        raise UserError(
            f"the mask is {mask.height}x{mask.width} (height x width) but the image is "
            f"{image.height}x{image.width}: give a mask of the image's size"
        )
    read = read_mask(mask, "the mask")
    if read.perhaps_image and is_black_and_white(image):
        raise UserError(
            "the image is black and white and the mask is not: give the image first, then its mask (IMAGE MASK)"
        )
    return torch.from_numpy(read.hole), read.notes
