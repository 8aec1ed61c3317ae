"""The original's method for large images (`split_input_params`): overlapping crops, blended by distance to a border.

Each crop has separate group norms and attention, so the result differs from the whole image's: this exists to
reproduce the original's results, whose super-resolution notebook uses it from 128 pixels on.
"""

from collections.abc import Callable, Sequence
from fractions import Fraction
from itertools import product

import torch
from torch import Tensor

from sfumato.errors import UserError

CLIP = (0.01, 0.5)
"""Bounds of a crop's weights: the original's clip_min_weight and clip_max_weight."""


def border_weights(height: int, width: int, clip: tuple[float, float] = CLIP) -> Tensor:
    """(height, width): each position's distance to the nearest border, as a share of the side, within the bounds."""
    rows, columns = (torch.linspace(0, 1, n) if n > 1 else torch.zeros(1) for n in (height, width))
    return torch.minimum(torch.minimum(rows, 1 - rows)[:, None], torch.minimum(columns, 1 - columns)).clamp(*clip)


def patchwise(
    function: Callable[..., Tensor],
    inputs: Sequence[Tensor],
    crop: int | tuple[int, int],
    stride: int | tuple[int, int],
    scale: float = 1,
    clip: tuple[float, float] = CLIP,
) -> Tensor:
    """Applies `function` to overlapping crops instead of the whole.

    Args:
        function: a crop of every input -> (B, C', scale · crop).
        inputs: tensors (B, C, H, W) of one size: the noisy latent, and optionally a map.
        crop, stride: (height, width) in positions of the inputs; a crop larger than the input is cut to it.
        scale: ratio of the result's size: f for a decoder, 1/f for an encoder, 1 for a U-Net.

    Returns (B, C', scale · H, scale · W). Raises UserError where the crops do not cover the input to its last row.
    """
    size = inputs[0].shape[-2:]
    sides = [min(side, whole) for side, whole in zip(_pair(crop), size, strict=True)]
    steps = _pair(stride)
    for side, step, whole in zip(sides, steps, size, strict=True):
        if step < 1 or step > side or (whole - side) % step:
            raise UserError(
                f"crops of {side} every {step} do not cover {whole} positions; choose a stride up to the crop that "
                f"divides {whole - side}"
            )
    factor = Fraction(scale).limit_denominator(1024)
    high, wide = (int(side * factor) for side in sides)
    weights = border_weights(high, wide, clip)
    total, covered = torch.zeros(()), torch.zeros(*(int(whole * factor) for whole in size))
    starts = [range(0, whole - side + 1, step) for side, step, whole in zip(sides, steps, size, strict=True)]
    for top, left in product(*starts):
        output = function(*(x[..., top : top + sides[0], left : left + sides[1]].contiguous() for x in inputs))
        if total.dim() == 0:
            total = output.new_zeros(*output.shape[:2], *covered.shape)
        at = int(top * factor), int(left * factor)
        total[..., at[0] : at[0] + high, at[1] : at[1] + wide] += weights.to(output) * output
        covered[at[0] : at[0] + high, at[1] : at[1] + wide] += weights
    return total / covered.to(total)


def _pair(value: int | tuple[int, int]) -> tuple[int, int]:
    return (value, value) if isinstance(value, int) else value
