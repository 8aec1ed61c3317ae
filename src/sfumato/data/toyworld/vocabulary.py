"""The words of the toy world and their appearance.

Object colours are saturated and far apart, backgrounds muted, so that the reader can recognise them without a network.
Sizes are diameters as a fraction of the image's shorter side; the two ranges are far apart.
"""

from collections.abc import Iterable
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import field_validator

from sfumato.schema import Schema

Rgb = tuple[int, int, int]

SHAPES: tuple[str, ...] = ("circle", "square", "triangle", "star", "cross", "ring", "heart", "diamond")
TEXTURES: tuple[str, ...] = ("plain", "striped", "dotted")
ARRANGEMENTS: tuple[str, ...] = ("single", "pair", "group", "row")
RELATIONS: tuple[str, ...] = ("above", "below", "left of", "right of")
POSITIONS: dict[str, tuple[float, float]] = {
    "in the middle": (0.5, 0.5),
    "at the top left": (0.26, 0.26),
    "at the top right": (0.74, 0.26),
    "at the bottom left": (0.26, 0.74),
    "at the bottom right": (0.74, 0.74),
}
COUNTS: dict[str, int] = {"two": 2, "three": 3, "four": 4}
SIZES: dict[str, tuple[float, float]] = {"small": (0.24, 0.275), "large": (0.385, 0.42)}
SIZE_BOUNDARY = 0.328

# Each colour has an accent, the second colour of its stripes and dots: lighter for dark colours, darker for light ones.
COLOURS: dict[str, tuple[Rgb, Rgb]] = {
    "red": ((219, 50, 54), (250, 186, 180)),
    "orange": ((245, 137, 28), (140, 62, 8)),
    "yellow": ((250, 212, 52), (148, 112, 10)),
    "green": ((44, 158, 82), (184, 230, 190)),
    "cyan": ((62, 200, 208), (12, 98, 116)),
    "blue": ((44, 96, 214), (178, 200, 250)),
    "purple": ((132, 64, 178), (222, 188, 240)),
    "pink": ((248, 146, 196), (176, 44, 118)),
}

# Top and bottom colour; equal for the plain ones. "checkered" alternates the two instead.
BACKGROUNDS: dict[str, tuple[Rgb, Rgb]] = {
    "white": ((250, 249, 246), (250, 249, 246)),
    "grey": ((150, 153, 160), (150, 153, 160)),
    "black": ((26, 27, 32), (26, 27, 32)),
    "beige": ((224, 204, 172), (224, 204, 172)),
    "navy": ((30, 42, 88), (30, 42, 88)),
    "sky": ((128, 182, 236), (232, 243, 250)),
    "checkered": ((238, 238, 236), (198, 201, 208)),
}

# Pairs of object and background that are too similar; they never occur together.
CLASHES: frozenset[tuple[str, str]] = frozenset(
    {("cyan", "sky"), ("blue", "sky"), ("blue", "navy"), ("pink", "beige"), ("yellow", "beige")}
)

Arrangement = Literal["single", "pair", "group", "row"]


def plural(shape: str) -> str:
    """The plural of a shape's name."""
    return shape + ("es" if shape.endswith("s") else "s")


def rgb(colours: Iterable[Rgb]) -> NDArray[np.float32]:
    """Colours as a float array (n, 3) in [0, 255]."""
    return np.array(list(colours), np.float32)


class Vocabulary(Schema):
    """The words that scenes use: narrow the vocabulary for an easier task. Every entry must be a word of the world.

    Raises ValidationError for an unknown, repeated or missing word.
    """

    shapes: tuple[str, ...] = SHAPES
    colours: tuple[str, ...] = tuple(COLOURS)
    sizes: tuple[str, ...] = tuple(SIZES)
    textures: tuple[str, ...] = TEXTURES
    backgrounds: tuple[str, ...] = tuple(BACKGROUNDS)
    arrangements: tuple[Arrangement, ...] = ("single", "pair", "group", "row")

    @field_validator("shapes", "colours", "sizes", "textures", "backgrounds", "arrangements")
    @classmethod
    def _known(cls, words: tuple[str, ...], info: object) -> tuple[str, ...]:
        name = str(getattr(info, "field_name", ""))
        known = {
            "shapes": SHAPES,
            "colours": tuple(COLOURS),
            "sizes": tuple(SIZES),
            "textures": TEXTURES,
            "backgrounds": tuple(BACKGROUNDS),
            "arrangements": ARRANGEMENTS,
        }[name]
        if not words or len(set(words)) != len(words) or not set(words) <= set(known):
            raise ValueError(f"{name} {list(words)!r} must be distinct words out of {', '.join(known)}")
        return words
