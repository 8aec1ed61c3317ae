"""Options of the paper's tasks beside those of a request, each declared once; what tasks share, and their defaults.

The command line and the service read these declarations. Importing this module is fast: it does not import torch.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from sfumato.pipeline.options import Range, like, needed, option
from sfumato.pipeline.request import LONGEST_SIDE, MOST_IMAGES, SEED, SHARE, SampleRequest

if TYPE_CHECKING:
    from PIL.Image import Image

FEATHER = 2
STRENGTH = 0.6
FRAMES = 9
SAMPLING = (
    "count",
    "seed",
    "guidance",
    "interval",
    "rescale",
    "projection",
    "sampler",
    "steps",
    "eta",
    "grid",
    "shift",
    "times",
    "memory",
    "window",
    "overlap",
    "reuse",
)
"""The options of a request that every task on an image has."""
DEFAULTS: Mapping[str, Any] = {"count": 1, "steps": 20, "window": None}
"""Their defaults, where a task has other ones than a request."""


@dataclass(frozen=True, kw_only=True)
class InpaintOptions:
    """The options of inpainting."""

    image: "Image" = needed("what to sample", "An image of any size and mode.")
    mask: "Image" = needed("what to sample", "An image of the same size; white is the hole.")
    feather: int = option(
        FEATHER,
        "what to sample",
        "Width in pixels, inwards from the hole's edge, over which old and new are blended.",
        Range(0, LONGEST_SIDE, whole=True),
    )
    jumps: tuple[int, int] | None = like(SampleRequest, "jumps")


@dataclass(frozen=True, kw_only=True)
class OutpaintOptions:
    """The options of outpainting."""

    image: "Image" = like(InpaintOptions, "image")
    extend: tuple[int, int, int, int] = needed(
        "what to sample", "Pixels to add on each side, as 128,0,128,0.", Range(0, LONGEST_SIDE, whole=True)
    )
    jumps: tuple[int, int] | None = like(SampleRequest, "jumps")


@dataclass(frozen=True, kw_only=True)
class EditOptions:
    """The options of editing an image."""

    image: "Image" = needed("what to sample", "An image of any size.")
    strength: float = like(SampleRequest, "strength", STRENGTH)
    style: "Image | None" = option(
        None, "what to sample", "An image whose colours and contrast the result gets (the statistics of its latent)."
    )
    style_amount: float = option(
        1.0, "what to sample", "How much of that image's statistics is applied: 0 none, 1 all.", SHARE
    )


@dataclass(frozen=True, kw_only=True)
class UpscaleOptions:
    """The options of super-resolution."""

    image: "Image" = needed("what to sample", "A small image, of any size.")
    keep_colours: bool = option(True, "what to sample", "Correct slow colour drift relative to the small image.")


@dataclass(frozen=True, kw_only=True)
class SemanticOptions:
    """The options of semantic synthesis."""

    map: "Image" = needed("what to sample", "An image of class ids, or of the classes' colours.")


@dataclass(frozen=True, kw_only=True)
class LayoutOptions:
    """The options of layout-to-image synthesis."""

    boxes: Sequence[object] = needed(
        "what to sample", 'Objects: [{"label": "dog", "box": [x, y, width, height]}, ...], in fractions of the image.'
    )
    size: tuple[int, int] | None = like(SampleRequest, "size")


@dataclass(frozen=True, kw_only=True)
class InterpolateOptions:
    """The options of interpolation."""

    seeds: Sequence[int] = option((0, 1), "what to sample", "Seeds to interpolate between.", SEED)
    frames: int = option(
        FRAMES,
        "what to sample",
        "Images from one seed or prompt to the next, both included.",
        Range(2, MOST_IMAGES, whole=True),
    )
