"""Colour drift: the smooth part of the difference between an image and its reference."""

import torch
import torch.nn.functional as F
from torch import Tensor

CELL = 8
"""Pixels over which a difference is averaged, so that no detail is transferred."""


def drift(difference: Tensor, known: Tensor, cell: int = CELL) -> Tensor:
    """A smooth image (B, C, H, W), approximately the mean of `difference` over the known pixels nearby.

    Cells of `cell` pixels are averaged; where no pixel is known the value comes from coarser and coarser levels
    (push-pull, Gortler et al. 1996), so the holes of `known` (B, 1, H, W), 1 or 0, are filled smoothly.
    """
    size = difference.shape[-2:]
    sums, weights = _halved(difference * known, cell), _halved(known, cell)
    levels = [(sums, weights)]
    while max(levels[-1][0].shape[-2:]) > 1:
        levels.append((_halved(levels[-1][0], 2), _halved(levels[-1][1], 2)))
    value = torch.zeros_like(levels[-1][0])
    for sums, weights in reversed(levels):
        below = F.interpolate(value, size=sums.shape[-2:], mode="bilinear")
        value = torch.where(weights > 0, sums / weights.clamp_min(1e-6), below)
    return F.interpolate(value, size=size, mode="bilinear")


def without_drift(image: Tensor, reference: Tensor, known: Tensor, cell: int = CELL) -> Tensor:
    """The image (B, C, H, W) with the reference's colours, where known, and the image's detail."""
    return image + drift(reference - image, known, cell)


def _halved(x: Tensor, by: int) -> Tensor:
    """Means over squares of side `by`, cropped at the border."""
    return F.avg_pool2d(x, by, ceil_mode=True, count_include_pad=False)
