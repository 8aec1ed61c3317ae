"""Canvases larger than a network's input: overlapping windows whose expected clean latents are averaged at every step.

MultiDiffusion (Bar-Tal et al. 2023, eq. 5) averages the results of each window's step. At a fixed x_t a step is affine
in the expected clean latent, so averaging that is the same, and any sampler works as with one large network.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from sfumato.errors import UserError
from sfumato.sampling.sampler import Denoise

OVERLAP = 0.25
"""Default overlap of neighbouring windows, as a share of their side."""


@dataclass(frozen=True)
class Window:
    """A part of a latent (B, C, h, w)."""

    top: int
    left: int
    height: int
    width: int

    def of(self, x: Tensor) -> Tensor:
        """The part (B, C, height, width), a view."""
        return x[..., self.top : self.top + self.height, self.left : self.left + self.width]


def windows(size: tuple[int, int], window: tuple[int, int], overlap: float = OVERLAP) -> list[Window]:
    """The fewest evenly spaced windows that cover (h, w), neighbours sharing at least `overlap` of their side.

    A single one where the window is as large as the canvas. Raises UserError for an overlap outside [0, 1).
    """
    if not 0 <= overlap < 1:
        raise UserError(f"overlap is {overlap:g}: give a share of the window from 0 to below 1, such as 0.25")
    tops, height = _places(size[0], window[0], overlap)
    lefts, width = _places(size[1], window[1], overlap)
    return [Window(top, left, height, width) for top in tops for left in lefts]


def windowed(
    denoise_of: Callable[[Window], Denoise],
    size: tuple[int, int],
    window: tuple[int, int],
    overlap: float = OVERLAP,
) -> Denoise:
    """The denoise function of a canvas (h, w) from those of its windows; that of a single window unchanged.

    Weights fall linearly to a window's border, so that there is no seam. A network call needs the memory of one
    window.
    """
    places = windows(size, window, overlap)
    parts = [(place, denoise_of(place)) for place in places]
    if len(parts) == 1:
        return parts[0][1]
    weight = _weights(places[0].height, places[0].width)
    covered = torch.zeros(size)
    for place in places:
        place.of(covered).add_(weight)

    def denoise(x_t: Tensor, t: Tensor) -> Tensor:
        w, total = weight.to(x_t), torch.zeros_like(x_t)
        for place, part in parts:
            place.of(total).add_(w * part(place.of(x_t).contiguous(), t))
        return total / covered.to(x_t)

    return denoise


def _places(length: int, side: int, overlap: float) -> tuple[list[int], int]:
    """Starts of the windows along one axis, and their side."""
    side = min(side, length)
    stride = max(1, int(side * (1 - overlap)))
    count = 1 + -(-(length - side) // stride)
    return [round(i * (length - side) / max(1, count - 1)) for i in range(count)], side


def _weights(height: int, width: int) -> Tensor:
    """(height, width), 1 in the middle, falling to the border and positive everywhere."""
    rows, columns = (torch.minimum(torch.arange(n) + 1, n - torch.arange(n)).float() for n in (height, width))
    return (rows / rows.max())[:, None] * (columns / columns.max())
