"""The conditions that a run derives from its data."""

from typing import Literal

from pydantic import Field, field_validator

from sfumato.conditioning.metadata import DegradationName
from sfumato.schema import Schema

HoleKind = Literal["box", "strokes", "thin", "medium", "thick"]
HOLES: tuple[HoleKind, ...] = ("box", "strokes", "thin", "medium", "thick")


class MapsConfig(Schema):
    """Label maps: `folder`/x.png for images/x.png or x.png, ids or colours; class names in the file `classes`."""

    folder: str = Field(default="maps", min_length=1)
    classes: str = "classes.txt"
    void: int | None = Field(default=255, ge=0, description="the id that means no class; null: there is none")


class BoxesConfig(Schema):
    """Boxes with categories: a COCO file, or a column of the metadata."""

    file: str | None = Field(
        default=None,
        description="COCO json or OpenImages csv below the data folder; null: COCO json there, else the column",
    )
    column: str = "boxes"
    classes: str = Field(default="classes.txt", description="category names in order, if the file exists")
    visible: float = Field(
        default=0.25, ge=0, le=1, description="boxes that keep less of their area after the crop are dropped"
    )


class LowResolutionConfig(Schema):
    """Low-resolution images, computed at each reading."""

    factor: int = Field(default=4, ge=2)
    degradation: DegradationName = "bicubic"


class MaskConfig(Schema):
    """Holes, random or from a folder of masks; the masked images are encoded before training."""

    kinds: tuple[HoleKind, ...] = Field(default=HOLES, min_length=1, description="all equally likely")
    folder: str | None = Field(
        default=None, description="a folder below the data folder, whose masks (white: hole) are used instead"
    )
    variants: int = Field(default=4, ge=1, description="masks for each image, each encoded and cached once")
    fill: Literal["black", "grey"] = "black"

    @field_validator("kinds")
    @classmethod
    def _distinct(cls, kinds: tuple[HoleKind, ...]) -> tuple[HoleKind, ...]:
        if len(set(kinds)) != len(kinds):
            raise ValueError(f"kinds {list(kinds)} names one of them twice")
        return kinds


class CropsConfig(Schema):
    """Random crops, each with its place in the whole image as a condition; needs `data.crop` random."""

    variants: int = Field(default=4, ge=1, description="crops of each image, each encoded and cached once")


GIVEN_BY: dict[str, tuple[str, ...]] = {
    "map": ("map",),
    "boxes": ("boxes", "categories"),
    "low_resolution": ("low_resolution",),
    "mask": ("masked_latent", "mask"),
    "crop": ("crop_box",),
}
"""The fields that each setting adds."""


class ConditionsConfig(Schema):
    """Conditions of a run; each that is set adds fields for conditioners."""

    map: MapsConfig | None = Field(default=None, description="gives `map`")
    boxes: BoxesConfig | None = Field(default=None, description="gives `boxes` and `categories`")
    low_resolution: LowResolutionConfig | None = Field(default=None, description="gives `low_resolution`")
    mask: MaskConfig | None = Field(default=None, description="gives `masked_latent` and `mask`")
    crop: CropsConfig | None = Field(default=None, description="gives `crop_box`")

    @property
    def folders(self) -> tuple[str, ...]:
        """Folders below the data folder that hold no images to train on."""
        named = (self.map and self.map.folder, self.mask and self.mask.folder)
        return tuple(name for name in named if name)

    @property
    def files(self) -> tuple[str, ...]:
        """Files and folders of annotations below the data folder, which are neither captions nor metadata."""
        named = (self.map and self.map.classes, self.boxes and self.boxes.classes, self.boxes and self.boxes.file)
        return (*(name for name in named if name), *(("annotations",) if self.boxes else ()))

    @property
    def gives(self) -> tuple[str, ...]:
        """The fields."""
        return tuple(field for name, fields in GIVEN_BY.items() if getattr(self, name) is not None for field in fields)
