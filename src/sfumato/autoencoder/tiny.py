"""A tiny decoder for previews: raw latent -> image in a small fraction of the decoder's operations.

Convolutions and ReLUs only, as the published tiny autoencoders (TAESD): no norms and no attention, so a position of the
image depends on the latent near it. Most of the work is done at the latent's resolution; widths halve where the
resolution doubles, by sub-pixel convolutions (Shi et al. 2016), the last of them straight to the image.
Axes: B batch, C channels, h×w latent.
"""

from itertools import pairwise
from typing import Self

import torch
import torch.nn.functional as F
from pydantic import Field, model_validator
from torch import Tensor, nn

from sfumato.autoencoder.scaling import Scaling
from sfumato.schema import Schema

REACH = 3.0
"""Standard deviations beyond which the latent is bent back, 3 · tanh(z / 3): a preview may receive any latent."""


class TinyDecoderConfig(Schema):
    """Topology of a tiny decoder; the first three follow from the autoencoder whose decoder it replaces."""

    latent_channels: int = Field(ge=1)
    image_channels: int = Field(3, ge=1)
    factor: int = Field(ge=1)
    """f: pixels per latent position along each side, a power of two."""
    channels: int = Field(64, ge=1)
    """Width at the latent's resolution."""
    blocks: int = Field(3, ge=1)
    """Residual blocks at the latent's resolution; every higher resolution has one."""

    @model_validator(mode="after")
    def _factor_is_a_power_of_two(self) -> Self:
        if self.factor & (self.factor - 1):
            raise ValueError(f"factor {self.factor} is not a power of two")
        return self

    @property
    def widths(self) -> tuple[int, ...]:
        """Channels at each resolution from the latent's up, except the image's; a single width for f = 1."""
        doublings = max(1, self.factor.bit_length() - 1)
        return tuple(max(1, self.channels >> level) for level in range(doublings))

    def bytes_needed(self, size: tuple[int, int]) -> int:
        """Approximate bytes of feature maps for a latent (h, w): input and output of the largest convolution."""
        h, w = size
        positions = [h * w * 4**level for level in range(len(self.widths))]
        largest = max(width * count for width, count in zip(self.widths, positions, strict=True))
        return 4 * (2 * largest + self.image_channels * self.factor**2 * h * w)


class TinyBlock(nn.Module):
    """relu(x + conv(relu(conv(x))))."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, channels, 3, padding=1)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> the same."""
        return F.relu(x + self.conv2(F.relu(self.conv1(x))))


class SubPixel(nn.Module):
    """A 3×3 convolution that outputs `factor`² positions for each input position."""

    def __init__(self, in_channels: int, out_channels: int, factor: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(in_channels, out_channels * factor**2, 3, padding=1)
        self.factor = factor

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C', factor·H, factor·W)."""
        return F.pixel_shuffle(self.conv(x), self.factor)


class TinyDecoder(nn.Module):
    """Decodes raw latents, which it first normalises to zero mean and unit variance by its own scaling."""

    def __init__(self, config: TinyDecoderConfig, scaling: Scaling | None = None) -> None:
        super().__init__()
        self.config = config
        self.scaling = Scaling.from_factor(config.latent_channels, 1.0) if scaling is None else scaling
        widths = config.widths
        self.conv_in = nn.Conv2d(config.latent_channels, widths[0], 3, padding=1)
        self.mid = nn.ModuleList(TinyBlock(widths[0]) for _ in range(config.blocks))
        self.up = nn.ModuleList(
            nn.ModuleList([SubPixel(lower, upper, 2), TinyBlock(upper)]) for lower, upper in pairwise(widths)
        )
        self.out = SubPixel(widths[-1], config.image_channels, min(2, config.factor))

    def forward(self, z: Tensor) -> Tensor:
        """Raw latent (B, C, h, w) -> image (B, image_channels, f·h, f·w) in about [-1, 1], unbounded."""
        h = REACH * torch.tanh(self.scaling.to_model(z) / REACH)
        h = F.relu(self.conv_in(h))
        for block in self.mid:
            h = block(h)
        for level in self.up:
            assert isinstance(level, nn.ModuleList)
            widen, block = level
            h = block(F.relu(widen(h)))
        image: Tensor = self.out(h)
        return image.to(z.dtype)
