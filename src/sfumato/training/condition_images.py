"""The condition of a sample as an image, shown beside it in the previews of a run."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image, ImageDraw
from torch import Tensor

from sfumato.conditioning.metadata import ConditioningMetadata, standard_palette
from sfumato.images import to_unit

_GREY = 0.75


def condition_images(fields: Mapping[str, Any], metadata: ConditioningMetadata, images: Tensor) -> list[Tensor]:
    """One batch (N, 3, H, W) in [-1, 1] for each condition among the fields; `images` are the originals."""
    size = (images.shape[2], images.shape[3])
    shown = []
    if metadata.map is not None and "map" in fields:
        shown.append(map_images(fields["map"], metadata.map.palette, size))
    if metadata.layout is not None and "boxes" in fields:
        shown.append(box_images(fields["boxes"], fields["categories"], len(metadata.layout.names), size))
    if metadata.low_resolution is not None and "low_resolution" in fields:
        shown.append(F.interpolate(fields["low_resolution"].float(), size, mode="nearest"))
    if metadata.mask is not None and "mask" in fields:
        hole = F.interpolate((fields["mask"] == metadata.mask.hole).float(), size, mode="nearest")
        shown.append(torch.where(hole > 0, _GREY, images))
    return shown


def map_images(maps: Tensor, palette: tuple[tuple[int, int, int], ...], size: tuple[int, int]) -> Tensor:
    """Label maps (N, H, W) in the classes' colours; pixels without a class are white."""
    colours = torch.tensor([*palette, (255, 255, 255)], dtype=torch.uint8)
    ids = maps.long()
    ids = torch.where((ids < 0) | (ids >= len(palette)), len(palette), ids)
    image = to_unit(colours[ids].permute(0, 3, 1, 2))
    return F.interpolate(image, size, mode="nearest")


def box_images(boxes: Any, categories: Any, count: int, size: tuple[int, int]) -> Tensor:
    """Boxes (N of (M, 4) each, in [0, 1]) as outlines in their categories' colours on grey."""
    H, W = size
    palette = standard_palette(count + 1)[1:]  # without black
    outlines = []
    for group, labels in zip(boxes, categories, strict=True):
        image = Image.new("RGB", (W, H), (224, 224, 224))
        canvas = ImageDraw.Draw(image)
        for (x, y, across, down), label in zip(group.tolist(), labels.tolist(), strict=True):
            corners = (x * W, y * H, max(x, x + across) * W - 1, max(y, y + down) * H - 1)
            canvas.rectangle(corners, outline=palette[label % len(palette)], width=max(1, min(H, W) // 48))
        outlines.append(torch.from_numpy(np.array(image)).permute(2, 0, 1))
    return to_unit(torch.stack(outlines))
