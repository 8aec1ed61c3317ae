"""Resizing images for a feature network. The filter is part of the protocol: scores differ between filters.

Parmar et al. 2022 ("On aliased resizing") measured that the choice changes FID more than many improved models do.
"""

from typing import Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor

from sfumato.errors import UserError

ResizeFilter = Literal["bicubic", "bilinear", "tensorflow"]
"""bicubic: antialiased, as Pillow and clean-fid; bilinear: torch's, not antialiased, as pytorch-fid; tensorflow:
the bilinear of TensorFlow 1 with its shifted corner, as the original FID and torch-fidelity."""


def resize(images: Tensor, size: tuple[int, int], kind: ResizeFilter) -> Tensor:
    """Images (B, C, H, W) -> (B, C, *size) float32; values are neither clipped nor rounded.

    Raises UserError for an unknown filter.
    """
    if kind not in get_args(ResizeFilter):
        raise UserError(f"resize filter {kind!r} is not one of {', '.join(get_args(ResizeFilter))}")
    x = images.float()
    if x.shape[-2:] == size:
        return x
    if kind == "bicubic":
        return F.interpolate(x, size, mode="bicubic", antialias=True, align_corners=False)
    if kind == "bilinear":
        return F.interpolate(x, size, mode="bilinear", align_corners=False)
    return _tensorflow(_tensorflow(x, -2, size[0]), -1, size[1])


def _tensorflow(x: Tensor, axis: int, length: int) -> Tensor:
    """One axis of TensorFlow 1's bilinear resize: output i reads from i · old / new, without the half pixel."""
    old = x.shape[axis]
    place = torch.arange(length, dtype=torch.float32, device=x.device) * (old / length)
    low = place.floor().long().clamp(max=old - 1)
    high = (low + 1).clamp(max=old - 1)
    share = (place - low).reshape([-1] + [1] * (-axis - 1))
    return torch.lerp(x.index_select(axis, low), x.index_select(axis, high), share)
