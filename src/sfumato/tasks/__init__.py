"""The paper's tasks as functions of a model: each takes the user's picture, map or boxes and returns pictures."""

from sfumato.tasks.editing import edit
from sfumato.tasks.inpainting import inpaint
from sfumato.tasks.layout import Box, compose
from sfumato.tasks.outpainting import Extent, outpaint
from sfumato.tasks.semantic import paint
from sfumato.tasks.settings import Settings
from sfumato.tasks.super_resolution import upscale

__all__ = ["Box", "Extent", "Settings", "compose", "edit", "inpaint", "outpaint", "paint", "upscale"]
