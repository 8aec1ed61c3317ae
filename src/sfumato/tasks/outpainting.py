"""Outpainting: extending an image beyond its borders; the added area is the hole of an inpainting."""

from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from PIL import Image

from sfumato.data.profiles import in_srgb
from sfumato.data.reading import to_rgb
from sfumato.errors import UserError
from sfumato.images import from_pil
from sfumato.model import LatentDiffusion
from sfumato.pipeline.memory import check_memory
from sfumato.pipeline.options import check_number
from sfumato.pipeline.request import DEFAULT_MEMORY, SIDE, SampleRequest
from sfumato.tasks.compositing import composite
from sfumato.tasks.inpainting import filling
from sfumato.tasks.parts import check_image_size
from sfumato.tasks.requests import Task, checked_options, run_tasks

TRUE_COLOUR = {"P": "RGB", "PA": "RGBA", "1": "L"}
"""Images with few colours are extended in full colour: their palette would not suffice for the new area."""


@dataclass(frozen=True)
class Extent:
    """Pixels added on each side."""

    left: int = 0
    top: int = 0
    right: int = 0
    bottom: int = 0


def outpaint(
    model: LatentDiffusion,
    image: Image.Image,
    extend: Extent,
    prompt: str | None = None,
    *,
    label: int | str | None = None,
    negative: str | None = None,
    jumps: tuple[int, int] | None = None,
    options: SampleRequest | None = None,
) -> list[Image.Image]:
    """The image extended beyond its borders on a larger canvas; its pixels are bitwise unchanged.

    The new area is opaque. Arguments otherwise as for `inpaint`.
    Raises UserError for negative extents or all 0, and options that do not fit the model.
    """
    options = checked_options(options)
    task = outpainting_task(
        model, image, extend, prompt, label=label, negative=negative, jumps=jumps, memory=options.memory
    )
    return run_tasks(model, [task], options)


def outpainting_task(
    model: LatentDiffusion,
    image: Image.Image,
    extend: Extent,
    prompt: str | None = None,
    *,
    label: int | str | None = None,
    negative: str | None = None,
    jumps: tuple[int, int] | None = None,
    memory: int = DEFAULT_MEMORY,
) -> Task[Image.Image]:
    """The task of `outpaint`, not yet run."""
    check_image_size(model, image.height, image.width)
    image, _ = in_srgb(image)
    canvas, hole = extended(image, extend)
    then = partial(composite, canvas, hole=hole, feather=0)
    pixels = from_pil(to_rgb(canvas, (255, 255, 255)))
    conditioning = {"prompt": prompt, "label": label, "negative": negative}
    return filling(model, pixels, hole, conditioning, jumps, memory, then)


def extended(image: Image.Image, extend: Extent) -> tuple[Image.Image, torch.Tensor]:
    """The canvas, whose new part repeats the image's border, and the mask (H, W) of the new part. UserError as in
    `outpaint`."""
    sides = (extend.left, extend.top, extend.right, extend.bottom)
    if min(sides) < 0 or not any(sides):
        raise UserError(
            f"extend is {','.join(map(str, sides))}: give the pixels to add on the left, top, right and bottom, "
            "such as 128,0,128,0"
        )
    grown_to = (image.height + extend.top + extend.bottom, image.width + extend.left + extend.right)
    check_number("the extended image's side", grown_to, SIDE)
    check_memory(grown_to, 1)
    if image.mode in TRUE_COLOUR:
        image = image.convert("RGBA" if image.has_transparency_data else TRUE_COLOUR[image.mode])
    pixels = np.asarray(image)
    margins = ((extend.top, extend.bottom), (extend.left, extend.right))
    grown = np.pad(pixels, (*margins, (0, 0)) if pixels.ndim == 3 else margins, mode="edge")
    hole = np.pad(np.zeros(pixels.shape[:2], bool), margins, constant_values=True)
    if image.mode in ("RGBA", "LA"):
        grown[..., -1][hole] = 255
    canvas = Image.frombytes(image.mode, (grown.shape[1], grown.shape[0]), np.ascontiguousarray(grown).tobytes())
    canvas.info.update({name: value for name, value in image.info.items() if name == "icc_profile"})
    return canvas, torch.from_numpy(hole)
