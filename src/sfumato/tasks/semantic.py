"""From a label map to an image (section 4.3.2 of the paper, semantic synthesis)."""

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from sfumato.data.label_ids import ids_of
from sfumato.errors import UserError
from sfumato.images import pad_to_multiple, to_pil
from sfumato.model import LatentDiffusion
from sfumato.pipeline.parts import canvas_factor
from sfumato.pipeline.request import SampleRequest
from sfumato.tasks.parts import check_image_size, one_each, semantic_part
from sfumato.tasks.requests import Task, checked_options, run_tasks


def paint(
    model: LatentDiffusion,
    map: Image.Image | Tensor,  # the field's name
    prompt: str | None = None,
    *,
    negative: str | None = None,
    options: SampleRequest | None = None,
) -> list[Image.Image]:
    """Images of a label map, of its size.

    Args:
        model: a second stage conditioned on maps.
        map: an image of class ids (grey values or palette indices) or of the classes' colours, or ids (H, W).
        prompt: for models conditioned on text as well.
        negative: a text to guide away from.
        options: sampling options, see `task_options`.

    Raises:
        UserError: for an id or colour of no class of the model, and options that do not fit it.
    """
    return paint_each(model, [map], None if prompt is None else [prompt], negative=negative, options=options)


def paint_each(
    model: LatentDiffusion,
    maps: Sequence[Image.Image | Tensor],
    prompts: Sequence[str] | None = None,
    *,
    negative: str | None = None,
    options: SampleRequest | None = None,
) -> list[Image.Image]:
    """`paint` for many maps, `options.batch` at once, with a prompt for each. Arguments and errors otherwise as
    there."""
    options = checked_options(options)
    return run_tasks(model, semantic_tasks(model, maps, prompts, negative=negative), options)


def semantic_tasks(
    model: LatentDiffusion,
    maps: Sequence[Image.Image | Tensor],
    prompts: Sequence[str] | None = None,
    *,
    negative: str | None = None,
) -> list[Task[Image.Image]]:
    """The tasks of `paint_each`, not yet run."""
    prompted = zip(maps, one_each(prompts, len(maps), "maps"), strict=True)
    return [_task(model, given, prompt, negative) for given, prompt in prompted]


def _task(
    model: LatentDiffusion, map: Image.Image | Tensor, prompt: str | None, negative: str | None
) -> Task[Image.Image]:
    part = semantic_part(model)
    ids = map if isinstance(map, Tensor) else read_map(model, map)
    check_ids(model, ids)
    H, W = ids.shape
    check_image_size(model, H, W, "the map")
    whole = pad_to_multiple(ids[None, None], max(canvas_factor(model), 2**part.stages))
    fields = {"map": whole[:, 0].to(model.device)}
    size = (whole.shape[2], whole.shape[3])
    request = SampleRequest(prompt=prompt, negative=negative, count=1, size=size, fields=fields)
    return Task(request, lambda canvas: to_pil(canvas[:, :H, :W]))


def read_map(model: LatentDiffusion, image: Image.Image) -> Tensor:
    """Class ids (H, W) long of an image: grey values, indices of a palette, or the model's colours.

    A palette with the model's colours in another order is read by colour. Raises UserError for a colour
    of no class, and for colours where the model's configuration records none.
    """
    known = model.config.conditioning_metadata.map
    ids = ids_of(image, "the map")
    if ids is not None and not (image.mode == "P" and known is not None and _reordered(image, ids, known.palette)):
        return torch.from_numpy(ids)
    pixels = np.asarray(image.convert("RGB"))
    if (pixels == pixels[..., :1]).all():
        return torch.from_numpy(pixels[..., 0].astype(np.int64))
    if known is None:
        raise UserError(
            "the map is in colour, but this model's config.yaml records no colours of classes "
            "(conditioning_metadata.map.palette): save the map as ids, grey or with a palette"
        )
    return _by_colour(pixels, known.palette, known.void)


def check_ids(model: LatentDiffusion, ids: Tensor) -> None:
    """Raises UserError for an id (H, W) that is neither a class of the model nor its void."""
    part, known = semantic_part(model), model.config.conditioning_metadata.map
    outside = (ids < 0) | (ids >= part.classes)
    if part.void is not None:
        outside &= ids != part.void
    if bool(outside.any()):
        row, column = (int(value) for value in outside.nonzero()[0])
        names = "" if known is None else f" ({', '.join(known.names[:8])}{', ...' if len(known.names) > 8 else ''})"
        void = "" if part.void is None else f", and {part.void} for no class"
        raise UserError(
            f"the map contains the class id {int(ids[row, column])} at row {row}, column {column}, but this model has "
            f"0 to {part.classes - 1}{names}{void}: correct the map"
        )


def _reordered(image: Image.Image, indices: NDArray[np.int64], palette: tuple[tuple[int, int, int], ...]) -> bool:
    """Whether all used colours are the model's, but at other indices."""
    own = np.array(image.getpalette("RGB") or [], np.int64).reshape(-1, 3)
    used = [i for i in np.unique(indices) if i < len(own)]
    colours = [tuple(int(v) for v in own[i]) for i in used]
    same = all(i < len(palette) and palette[i] == colour for i, colour in zip(used, colours, strict=True))
    return not same and all(colour in palette for colour in colours)


def _by_colour(pixels: NDArray[np.uint8], palette: tuple[tuple[int, int, int], ...], void: int | None) -> Tensor:
    ids = np.full(pixels.shape[:2], -1, np.int64)
    for number, colour in enumerate(palette):
        ids[(pixels == np.array(colour)).all(-1)] = number
    if void is not None:  # black and white that are no class's colour mean no class
        for extreme in (0, 255):
            ids[(pixels == extreme).all(-1) & (ids < 0)] = void
    if (ids < 0).any():
        row, column = (int(value) for value in np.argwhere(ids < 0)[0])
        named = "#{:02x}{:02x}{:02x}".format(*(int(value) for value in pixels[row, column]))
        raise UserError(
            f"the map has the colour {named} at row {row}, column {column}, which is not a class of this model: "
            "use the colours of conditioning_metadata.map.palette in its config.yaml, and PNG, not JPEG"
        )
    return torch.from_numpy(ids)
