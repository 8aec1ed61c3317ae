"""Settings that the configurations of all stored images share."""

import math
from typing import Literal

from pydantic import Field, field_validator, model_validator

from sfumato.data.buckets import BucketsConfig, Size, bucket_sizes
from sfumato.data.reading import MAX_PIXELS, colour
from sfumato.data.textfile import known_encoding
from sfumato.data.transforms import Framing
from sfumato.schema import Schema


class ImagesConfig(Schema):
    """Stored images and their preprocessing to (3, H, W); `size` is the side of a square or (H, W)."""

    size: int | tuple[int, int] = 256
    """Side of the square, or [height, width]; by default stage 2 takes the autoencoder's."""
    resize: Literal["crop", "pad"] = "crop"
    """`crop` covers the frame and cuts off the rest; `pad` fits the image inside and pads it with `background`."""
    crop: Literal["center", "random"] = "center"
    """Where to crop in training; held-out images are cropped at the centre."""
    buckets: BucketsConfig | None = None
    """Several sizes instead of one, for images that are not of one shape; {} for the defaults."""
    resize_filter: Literal["lanczos", "bicubic"] = "lanczos"
    flip: bool = False
    """Mirror half of the images in stage 1; for stage 2 see `mirrored`."""
    background: str = "white"
    """Background of transparent images: a name or #rrggbb."""
    max_pixels: int = Field(default=MAX_PIXELS, ge=1)
    """Larger images are left out; formats that are decoded in parts may have 1.25, 2 or 4 times as many pixels."""
    text_from: Literal["caption", "label"] = "caption"
    """`label` uses the name of the class as the caption."""
    caption_lines: Literal["first", "all", "each"] = "first"
    """Lines of a caption file to use: the first, all as one text, or each as a separate caption."""
    text_column: str = "text"
    """Column of the metadata; if no row has `text`, `caption` or `prompt` is read."""
    captions: dict[str, float] = Field(default_factory=dict)
    """Several caption columns with their sampling weights, such as {text: 1, long: 2}; instead of `text_column`."""
    encoding: str | None = None
    """Encoding of text files that are neither UTF-8 nor have a byte-order mark, such as cp1252."""
    label_column: str = "label"
    """Column of the metadata; if no row has `label`, `class` or `category` is read."""
    label_names: str | None = None
    """A file with the names of the classes: a label and its name on each line, such as `n01440764 tench`."""
    columns: tuple[str, ...] = ()
    """Further columns to read as fields."""
    where: dict[str, str | int | float | bool] = Field(default_factory=dict)
    """Read only the rows of the metadata whose columns have these values."""
    most_images: int | None = Field(default=None, ge=1)
    """Use at most this many images, chosen at random by their names; the others are left out and not read."""

    @field_validator("background")
    @classmethod
    def _known_colour(cls, value: str) -> str:
        colour(value)
        return value

    @field_validator("encoding")
    @classmethod
    def _known_encoding(cls, value: str | None) -> str | None:
        return None if value is None else known_encoding(value)

    @field_validator("captions")
    @classmethod
    def _sensible_weights(cls, value: dict[str, float]) -> dict[str, float]:
        for name, weight in value.items():
            if not (math.isfinite(weight) and weight > 0):
                raise ValueError(f"captions has the weight {weight:g} for {name!r}: give a finite number above 0")
        return value

    @model_validator(mode="after")
    def _sensible(self) -> "ImagesConfig":
        if self.captions and (self.text_from == "label" or self.text_column != "text"):
            raise ValueError("captions names the columns with captions: leave text_from and text_column as they are")
        if min(self.height_width) < 1:
            raise ValueError(f"size {self.size} must be positive")
        if self.resize == "pad" and self.crop == "random":
            raise ValueError("resize 'pad' leaves nothing to crop: choose resize 'crop' for crop 'random'")
        if self.buckets is not None and any(side % self.buckets.step for side in self.height_width):
            H, W = self.height_width
            raise ValueError(f"size {H}x{W} is not a multiple of buckets.step {self.buckets.step}: change either")
        return self

    @property
    def sizes(self) -> tuple[Size, ...]:
        """All sizes (H, W) that images are cropped to."""
        return (self.height_width,) if self.buckets is None else bucket_sizes(self.height_width, self.buckets)

    @property
    def height_width(self) -> tuple[int, int]:
        return (self.size, self.size) if isinstance(self.size, int) else self.size

    def framing(self) -> Framing:
        return Framing(
            size=self.height_width,
            resize=self.resize,
            crop=self.crop,
            flip=self.flip,
            filter=self.resize_filter,
            background=colour(self.background),
        )
