"""Conditions of a model beside text and class, as its config.yaml records them: the contract of training and use."""

from typing import Annotated, Literal

from pydantic import Field

from sfumato.schema import Schema

Level = Annotated[int, Field(ge=0, le=255)]
Rgb = tuple[Level, Level, Level]
DegradationName = Literal["bicubic", "bsr", "bsr-light"]


class MapInput(Schema):
    """Label maps: the classes' names and colours by id. `void` is the id that means no class; None: there is none."""

    names: tuple[str, ...]
    palette: tuple[Rgb, ...]
    void: int | None = None


class LayoutInput(Schema):
    """Boxes: the categories' names by number."""

    names: tuple[str, ...]


class LowResolutionInput(Schema):
    """Low-resolution images: factor and kind of degradation. The field has them in [-1, 1] at the latent's size."""

    factor: int = Field(ge=1, le=65536)
    degradation: DegradationName


class MaskInput(Schema):
    """Holes: the two values of the field `mask`, and the fill of the hole in the masked image that is encoded.

    A cell of the latent's grid is a hole where any of its pixels is. "black" is -1 in [-1, 1], "grey" 0.
    """

    keep: float = -1.0
    hole: float = 1.0
    fill: Literal["black", "grey"] = "black"


class ConditioningMetadata(Schema):
    """The conditions that a model was trained with; None: not conditioned on it."""

    map: MapInput | None = None
    layout: LayoutInput | None = None
    low_resolution: LowResolutionInput | None = None
    mask: MaskInput | None = None


def standard_palette(count: int) -> tuple[Rgb, ...]:
    """Well separated colours by class id: the bits of the id spread over the three channels (the VOC colour map)."""
    return tuple(_colour(i) for i in range(count))


def _colour(index: int) -> Rgb:
    channels = [0, 0, 0]
    for place in range(7, -1, -1):
        for channel in range(3):
            channels[channel] |= (index >> channel & 1) << place
        index >>= 3
    return channels[0], channels[1], channels[2]
