"""Bounding boxes with classes -> tokens (§4.3.1 of the paper, layout-to-image)."""

import math
from collections.abc import Sequence
from typing import Any, Literal, Self

import torch
import torch.nn.functional as F
from pydantic import Field, model_validator
from torch import Tensor

from sfumato.conditioning.condition import Condition, Conditioner, ConditionSpec, Fields
from sfumato.conditioning.encoder import OnDevices, TokenEncoder, device_of
from sfumato.conditioning.text import real_tokens
from sfumato.schema import Schema

WHOLE = (0.0, 0.0, 1.0, 1.0)
TABLE = "transformer.token_emb.weight"


class LayoutConfig(Schema):
    """The tokens of objects, and the transformer that encodes them."""

    kind: Literal["layout"] = "layout"
    classes: int = Field(ge=0, le=10_000_000, description="0: as many as the data has")
    objects: int = Field(
        default=30, gt=0, le=65536, description="maximum number of objects per image; further ones are left out"
    )
    box: Literal["corners", "center"] = Field(default="corners", description="two tokens for a box, or one")
    crop_tokens: bool = Field(
        default=True,
        description="true: boxes are of the whole image, the crop has two tokens; false: boxes are of the crop",
    )
    vocabulary: int = Field(
        default=8192, gt=4, le=10_000_000, description="shared by classes and positions; the last one is padding"
    )
    dim: int = Field(default=512, gt=0, le=65536)
    depth: int = Field(default=16, gt=0, le=256)
    heads: int = Field(default=8, gt=0, le=1024)
    head_dim: int = Field(default=64, gt=0, le=65536)
    mask_padding: bool = Field(default=True, description="padding is not attended; the original attended it")

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.grid**2 == self.vocabulary:
            raise ValueError(
                f"vocabulary {self.vocabulary} is a square, so its last position would be the padding token"
            )
        if self.classes >= self.vocabulary:
            raise ValueError(f"vocabulary {self.vocabulary} cannot hold {self.classes} classes and the padding token")
        return self

    @property
    def grid(self) -> int:
        """Positions are rounded to a grid of this many rows and columns."""
        return math.isqrt(self.vocabulary)

    @property
    def length(self) -> int:
        """Tokens of a layout."""
        return self.objects * (3 if self.box == "corners" else 2) + 2 * self.crop_tokens


def mirror(boxes: Tensor) -> Tensor:
    """Boxes (..., 4) of the image flipped left to right; flip the crop with the same function."""
    x, y, w, h = boxes.unbind(-1)
    return torch.stack([1 - x - w, y, w, h], -1)


def layout_tokens(
    config: LayoutConfig,
    boxes: Tensor,
    categories: Tensor,
    modifiers: Tensor | None = None,
    crop: Sequence[float] = WHOLE,
) -> Tensor:
    """Token ids (length,) of one layout: (class, position...) for each object, padding, then the crop.

    Args:
        boxes: (N, 4) x, y, width, height, as fractions of the whole image.
        categories: (N,) 0 .. classes - 1.
        modifiers: (N,) sums of 1 (a group), 2 (occluded), 4 (a depiction), 8 (seen from inside); None: zeros.
        crop: the part of the image that is seen, in the boxes' form; objects outside it are left out.

    Raises:
        ValueError: a category or modifier does not fit the vocabulary, or lengths disagree.
    """
    modifiers = torch.zeros_like(categories) if modifiers is None else modifiers
    return batch_tokens(config, [boxes], [categories], [modifiers], [crop])[0]


def batch_tokens(
    config: LayoutConfig,
    boxes: Sequence[Tensor],
    categories: Sequence[Tensor],
    modifiers: Sequence[Tensor],
    crops: Sequence[Sequence[float]],
) -> Tensor:
    """Token ids (B, length) of B layouts, each as in `layout_tokens`."""
    for lengths in zip(map(len, boxes), map(len, categories), map(len, modifiers), strict=True):
        if len(set(lengths)) != 1:
            counts = "{} boxes, {} categories, {} modifiers".format(*lengths)
            raise ValueError(f"a layout needs as many boxes as categories and modifiers, not {counts}")
    layout = torch.arange(len(boxes)).repeat_interleave(torch.tensor([len(one) for one in categories]))
    start, end = _corners(torch.cat([one.double().reshape(-1, 4) for one in boxes]))
    names = _names(config, torch.cat(tuple(categories)), torch.cat(tuple(modifiers)))
    left_top, right_bottom = _corners(torch.tensor([tuple(crop) for crop in crops], dtype=torch.float64))
    inside_start, inside_end = start.maximum(left_top[layout]), end.minimum(right_bottom[layout])
    seen = (inside_end > inside_start).all(1)
    if not config.crop_tokens:
        extent = (right_bottom - left_top)[layout]
        start, end = (inside_start - left_top[layout]) / extent, (inside_end - left_top[layout]) / extent
    columns = [names, _position(start, config.grid), _position(end, config.grid)]
    if config.box == "center":
        columns = [names, _position((start + end) / 2, config.grid)]
    objects, layout = torch.stack(columns, 1)[seen], layout[seen]
    place = torch.arange(len(layout)) - torch.searchsorted(layout, layout)  # among the seen objects of its layout
    kept = place < config.objects
    out = torch.full((len(boxes), config.length), config.vocabulary - 1)
    slots = out[:, : config.objects * len(columns)].view(len(boxes), config.objects, len(columns))
    slots[layout[kept], place[kept]] = objects[kept]
    if config.crop_tokens:
        out[:, -2], out[:, -1] = _position(left_top, config.grid), _position(right_bottom, config.grid)
    return out


def _names(config: LayoutConfig, categories: Tensor, modifiers: Tensor) -> Tensor:
    """The tokens (N,) of categories and modifiers, checked."""
    outside = categories[(categories < 0) | (categories >= config.classes)]
    if len(outside):
        raise ValueError(f"category {int(outside[0])} is out of range, categories are 0 .. {config.classes - 1}")
    names = categories + config.classes * modifiers
    if len(names) and int(names.max()) >= config.vocabulary - 1:
        raise ValueError(
            f"vocabulary {config.vocabulary} cannot hold class token {int(names.max())}; use fewer classes"
        )
    return names


def _corners(boxes: Tensor) -> tuple[Tensor, Tensor]:
    """First and last (x, y) of boxes (..., 4)."""
    return boxes[..., :2], boxes[..., :2] + boxes[..., 2:]


def _position(point: Tensor, grid: int) -> Tensor:
    """Index of points (..., 2), in [0, 1], on the grid, row by row."""
    column, row = (point.clamp(0, 1) * (grid - 1)).round().long().unbind(-1)
    return row * grid + column


def stretched(table: Tensor, known: LayoutConfig, config: LayoutConfig) -> Tensor:
    """A trained token table (known.vocabulary, dim) for the finer or coarser grid of another configuration.

    Positions are interpolated between their neighbours on the known grid; classes and padding keep their rows. Rows
    that are none of these are zeros.
    """
    known_positions = table[: known.grid**2].T.reshape(1, -1, known.grid, known.grid)
    size = (config.grid, config.grid)
    positions = F.interpolate(known_positions, size, mode="bilinear", align_corners=True).flatten(2)[0].T
    out = table.new_zeros(config.vocabulary, table.shape[1])
    out[: len(positions)] = positions
    out[: known.classes] = table[: known.classes]
    out[-1] = table[-1]
    return out


class LayoutTransformer(Conditioner):
    """Reads `boxes` and `categories`, B tensors each, and if present `modifiers` and `crop` (see `layout_tokens`).

    Instead of these it accepts `layout_tokens`, (B, length) ids. The unconditional layout is the whole image, no
    objects.
    """

    reads = ("boxes", "categories")

    def __init__(self, config: LayoutConfig) -> None:
        super().__init__()
        self.config = config
        self.transformer = TokenEncoder(
            config.vocabulary, config.dim, config.depth, config.heads, config.head_dim, config.length
        )
        self.spec = ConditionSpec(token_dim=config.dim)
        self._empty = OnDevices(self.empty_ids)

    def prepare(self, fields: Fields) -> dict[str, Any]:
        """`layout_tokens`, checked."""
        ids = self._tokens(fields) if fields.get("layout_tokens") is None else fields["layout_tokens"]
        self.transformer.check(ids)
        return {"layout_tokens": ids}

    def forward(self, fields: Fields) -> Condition:
        """tokens (B, length, dim), with the mask of real tokens if padding is masked."""
        return self._encode(self.prepare(fields)["layout_tokens"])

    def weights_of(self, trained: "LayoutTransformer") -> dict[str, Tensor]:
        """The weights of a trained layout transformer, its token table resampled if this one has another grid."""
        weights = dict(trained.state_dict())
        if trained.config.vocabulary != self.config.vocabulary:
            weights[TABLE] = stretched(weights[TABLE], trained.config, self.config)
        return weights

    def null(self, n: int, size: tuple[int, int]) -> Condition:
        """The empty layout, encoded once."""
        one = self._encode(self._empty(device_of(self)))
        return Condition(**{name: value.expand(n, *value.shape[1:]) for name, value in one.tensors().items()})

    def empty_ids(self) -> Tensor:
        """Ids (1, length) of the empty layout, the unconditional one."""
        return layout_tokens(self.config, torch.zeros(0, 4), torch.zeros(0, dtype=torch.long))[None]

    def _tokens(self, fields: Fields) -> Tensor:
        categories = [one.cpu() for one in fields["categories"]]
        given = fields.get("modifiers")
        modifiers = [torch.zeros_like(one) for one in categories] if given is None else [one.cpu() for one in given]
        crops = [tuple(map(float, crop)) for crop in fields["crop"]] if "crop" in fields else [WHOLE] * len(categories)
        return batch_tokens(self.config, [one.cpu() for one in fields["boxes"]], categories, modifiers, crops)

    def _encode(self, ids: Tensor) -> Condition:
        ids = ids.to(device_of(self), torch.long)
        mask = real_tokens(ids, self.config.vocabulary - 1) if self.config.mask_padding else None
        return Condition(tokens=self.transformer(ids, mask), mask=mask)
