"""The paper's tasks as functions of a model: each converts the user's image, map or boxes to images.

Functions named `…_each` process many at once.

Example:
    >>> model = sfumato.load("zoo:toy")
    >>> image = Image.new("RGB", (32, 32), "white")
    >>> hole = Image.new("L", (32, 32))
    >>> hole.paste(255, (8, 8, 24, 24))
    >>> filled, = sfumato.tasks.inpaint(model, image, hole, "a red circle", options=sfumato.SampleRequest(steps=2))
    >>> filled.getpixel((0, 0))
    (255, 255, 255)
    >>> right = sfumato.tasks.Extent(right=8)
    >>> wider, = sfumato.tasks.outpaint(model, image, right, options=sfumato.SampleRequest(steps=2))
    >>> wider.size
    (40, 32)
"""

from sfumato.tasks.editing import edit, edit_each
from sfumato.tasks.inpainting import inpaint, inpaint_each
from sfumato.tasks.layout import Box, compose, compose_each
from sfumato.tasks.outpainting import Extent, outpaint
from sfumato.tasks.requests import task_options
from sfumato.tasks.semantic import paint, paint_each
from sfumato.tasks.super_resolution import upscale, upscale_each

__all__ = [
    "Box",
    "Extent",
    "compose",
    "compose_each",
    "edit",
    "edit_each",
    "inpaint",
    "inpaint_each",
    "outpaint",
    "paint",
    "paint_each",
    "task_options",
    "upscale",
    "upscale_each",
]
