"""The paper's tasks as functions of a model: each converts the user's image, map or boxes to images.

Functions named `…_each` process many at once.
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
