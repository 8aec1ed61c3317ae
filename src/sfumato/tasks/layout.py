"""From boxes with categories to an image (section 4.3.1 of the paper, layout to image)."""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from sfumato.config import nearest
from sfumato.data.strict_json import read_json
from sfumato.errors import UserError
from sfumato.images import to_pil
from sfumato.model import LatentDiffusion
from sfumato.pipeline.options import check_number
from sfumato.pipeline.parts import canvas_factor
from sfumato.pipeline.request import SIDE, SampleRequest
from sfumato.tasks.parts import layout_part, one_each
from sfumato.tasks.requests import Task, checked_options, run_tasks

EXAMPLE = '{"label": "dog", "box": [x, y, width, height]}'


@dataclass(frozen=True)
class Box:
    """An object: its category by name or number, and x, y, width, height as fractions of the image."""

    label: int | str
    box: tuple[float, float, float, float]


@dataclass(frozen=True)
class Layout:
    """Objects, and the image's (H, W) if the file has it."""

    boxes: tuple[Box, ...]
    size: tuple[int, int] | None = None


def compose(
    model: LatentDiffusion,
    boxes: Sequence[Box],
    prompt: str | None = None,
    *,
    size: tuple[int, int] | None = None,
    negative: str | None = None,
    options: SampleRequest | None = None,
) -> list[Image.Image]:
    """Images of a layout.

    Args:
        model: a second stage conditioned on boxes.
        boxes: the objects; may be empty.
        prompt: for models conditioned on text as well.
        size: (H, W), by default the training size; sampled at the next multiple of the networks' factors and cropped.
        negative: a text to guide away from.
        options: sampling options, see `task_options`; each window uses its crop of the layout.

    Raises:
        UserError: for a box outside the image or without extent, an unknown category, and options that do not fit.
    """
    prompts = None if prompt is None else [prompt]
    return compose_each(model, [boxes], prompts, size=size, negative=negative, options=options)


def compose_each(
    model: LatentDiffusion,
    layouts: Sequence[Sequence[Box]],
    prompts: Sequence[str] | None = None,
    *,
    size: tuple[int, int] | None = None,
    negative: str | None = None,
    options: SampleRequest | None = None,
) -> list[Image.Image]:
    """`compose` for many layouts, `options.batch` at once, with a prompt for each. Otherwise as there."""
    options = checked_options(options)
    return run_tasks(model, layout_tasks(model, layouts, prompts, size=size, negative=negative), options)


def layout_tasks(
    model: LatentDiffusion,
    layouts: Sequence[Sequence[Box]],
    prompts: Sequence[str] | None = None,
    *,
    size: tuple[int, int] | None = None,
    negative: str | None = None,
) -> list[Task[Image.Image]]:
    """The tasks of `compose_each`, not yet run."""
    prompted = zip(layouts, one_each(prompts, len(layouts), "layouts"), strict=True)
    if size is not None:
        check_number("size", size, SIDE)
    return [_task(model, boxes, size, prompt, negative) for boxes, prompt in prompted]


def _task(
    model: LatentDiffusion, boxes: Sequence[Box], size: tuple[int, int] | None, prompt: str | None, negative: str | None
) -> Task[Image.Image]:
    part = layout_part(model)
    if len(boxes) > part.objects:
        raise UserError(f"{len(boxes)} boxes are given, but this model accepts at most {part.objects}: leave some out")
    for number, box in enumerate(boxes, 1):
        check_box(box, number)
    categories = [category(model, box.label, number) for number, box in enumerate(boxes, 1)]
    fields = {
        "boxes": [torch.tensor([box.box for box in boxes], dtype=torch.float32).reshape(-1, 4)],
        "categories": [torch.tensor(categories, dtype=torch.long)],
    }
    H, W = size or model.config.image_size
    unit = canvas_factor(model)
    canvas = (-(-H // unit) * unit, -(-W // unit) * unit)
    request = SampleRequest(prompt=prompt, negative=negative, count=1, size=canvas, fields=fields)
    return Task(request, lambda image: to_pil(image[:, :H, :W]))


def check_box(box: Box, number: int) -> None:
    """Raises UserError for a box that is not inside the image or has no extent."""
    x, y, width, height = box.box
    described = f"box {number} ({box.label}) is [{x:g}, {y:g}, {width:g}, {height:g}]"
    if not all(math.isfinite(value) for value in box.box):
        raise UserError(f"{described}: give four finite numbers, x, y, width, height")
    if width <= 0 or height <= 0:
        raise UserError(f"{described}: width and height must be above 0")
    slack = 1e-6
    if x < -slack or y < -slack or x + width > 1 + slack or y + height > 1 + slack:
        raise UserError(f"{described} as fractions of the image and reaches outside it: keep it within 0 to 1")


def category(model: LatentDiffusion, label: int | str, number: int) -> int:
    """The number of a category. Raises UserError for an unknown one, or a name where the model records none."""
    known = model.config.conditioning_metadata.layout
    count = layout_part(model).classes if known is None else len(known.names)
    if isinstance(label, str) and known is not None and label in known.names:
        return known.names.index(label)
    if isinstance(label, int) or label.isdecimal():
        if not 0 <= int(label) < count:
            raise UserError(f"box {number} has the category {label}, but this model's are 0 to {count - 1}")
        return int(label)
    if known is None:
        raise UserError(
            f"box {number} has the category {label!r}, but this model's config.yaml records no names "
            f"(conditioning_metadata.layout.names): give its number, 0 to {count - 1}"
        )
    names = f"{', '.join(known.names[:12])}{', ...' if len(known.names) > 12 else ''}"
    raise UserError(
        f"box {number} has the category {label!r}, which is not one of {names}{nearest(label, known.names)}"
    )


def read_layout(path: Path) -> Layout:
    """A JSON file of boxes: a list of objects, an object with `boxes` (and `width`, `height`), or COCO's.

    An object is `{"label": name or number, "box": fractions}` or has `bbox` in pixels instead, which requires
    the image's `width` and `height`. A COCO file must contain a single image. Raises UserError.
    """
    content = read_json(path, name=f"boxes {str(path)!r}")
    if isinstance(content, Mapping) and {"annotations", "categories"} <= content.keys():
        content = _from_coco(content, path)
    size = None
    if isinstance(content, Mapping):
        width, height = content.get("width"), content.get("height")
        if isinstance(width, int) and isinstance(height, int) and width > 0 and height > 0:
            size = (height, width)
        content = content.get("boxes")
    if not isinstance(content, list):
        raise UserError(f'boxes {str(path)!r} contains no list: give [{EXAMPLE}, ...] or {{"boxes": [...]}}')
    return Layout(tuple(_parse(entry, number, size) for number, entry in enumerate(content, 1)), size)


def _parse(entry: Any, number: int, size: tuple[int, int] | None) -> Box:
    fields = entry if isinstance(entry, Mapping) else {}
    label = fields.get("label", fields.get("category"))
    relative = "box" in fields
    values = fields.get("box" if relative else "bbox")
    numbers = values if isinstance(values, list) else []
    right = len(numbers) == 4 and all(isinstance(v, int | float) and not isinstance(v, bool) for v in numbers)
    if not isinstance(label, str | int) or isinstance(label, bool) or not right:
        raise UserError(f"box {number} is {json.dumps(entry)}: give an object such as {EXAMPLE}, in fractions")
    x, y, width, height = (float(value) for value in numbers)
    if relative:
        return Box(label, (x, y, width, height))
    if size is None:
        raise UserError(
            f"box {number} has a bbox, in pixels, but the file has no width and height of the image: add them, or "
            "give box, in fractions"
        )
    return Box(label, (x / size[1], y / size[0], width / size[1], height / size[0]))


def _from_coco(content: Mapping[str, Any], path: Path) -> dict[str, Any]:
    try:
        names = {category["id"]: str(category["name"]) for category in content["categories"]}
        images = content["images"]
        if len(images) != 1:
            raise UserError(f"boxes {str(path)!r} are a COCO file of {len(images)} images: give one of a single image")
        entries = [{"label": names[a["category_id"]], "bbox": a["bbox"]} for a in content["annotations"]]
        return {"width": images[0]["width"], "height": images[0]["height"], "boxes": entries}
    except (KeyError, TypeError) as error:
        message = f"{type(error).__name__}: {error}"
        raise UserError(
            f"boxes {str(path)!r} are not a COCO file ({message}): it needs images, annotations, categories"
        ) from None
