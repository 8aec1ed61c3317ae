"""The networks that a plan chooses among, from small to large, and rough numbers of each.

The numbers order the networks and extrapolate from one that was measured; what is chosen is measured itself. They
count 3x3 convolutions, and what else there is by a factor that fits `sfumato estimate`.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from math import log2
from typing import Any

BACKWARD = 3
"""Operations of a training step, over those of its forward pass."""
KERNEL = 9
BYTES = 4
ATTENDED = 8
"""Levels of the denoiser of at most this height and width have attention."""


@dataclass(frozen=True)
class FirstNetwork:
    """An autoencoder: base width, multipliers of its levels for f = 8, blocks a level, and when it pays.

    `images` is the number of images that it should see at least, `distinct` that of the folder's.
    """

    name: str
    channels: int
    multipliers: tuple[int, int, int, int]
    blocks: int
    groups: int
    images: int
    distinct: int

    def widths(self, factor: int) -> tuple[int, ...]:
        """Channels of each level, full resolution first."""
        return tuple(self.channels * m for m in self.multipliers[: int(log2(factor)) + 1])

    def operations(self, side: int, factor: int) -> float:
        """Of one image of a training step, the features of a perceptual loss not counted."""
        return BACKWARD * 2 * _products(self.widths(factor), side, self.blocks)

    def activations(self, side: int, factor: int) -> float:
        """Bytes that an image keeps for the backward pass."""
        return 8 * BYTES * _elements(self.widths(factor), side, self.blocks)

    def parameters(self, factor: int) -> int:
        """Approximately."""
        return _weights(self.widths(factor), self.blocks)


@dataclass(frozen=True)
class SecondNetwork:
    """A denoiser and the width of its text transformer, and when it pays; see `FirstNetwork`."""

    name: str
    channels: int
    small: tuple[int, ...]
    large: tuple[int, ...]
    blocks: int
    text: int
    images: int
    distinct: int

    def multipliers(self, side: int) -> tuple[int, ...]:
        """Of the levels, for latents of height and width `side`: `small` up to 8."""
        return self.small if side <= ATTENDED else self.large

    def widths(self, side: int) -> tuple[int, ...]:
        """Channels of each level."""
        return tuple(self.channels * m for m in self.multipliers(side))

    def operations(self, side: int) -> float:
        """Of one latent of a training step."""
        return BACKWARD * 2 * 2.8 * _products(self.widths(side), side, self.blocks)

    def activations(self, side: int) -> float:
        """Bytes that a latent keeps for the backward pass."""
        return 22 * BYTES * _elements(self.widths(side), side, self.blocks)

    def parameters(self, side: int) -> int:
        """Approximately, the text transformer included."""
        return 2 * _weights(self.widths(side), self.blocks) + 12 * self.text**2 * 2


FIRST: tuple[FirstNetwork, ...] = (
    FirstNetwork("small", 16, (1, 2, 2, 4), 1, 2, 0, 0),
    FirstNetwork("medium", 16, (1, 3, 6, 6), 1, 2, 8_000, 100),
    FirstNetwork("large", 32, (1, 2, 4, 4), 2, 4, 80_000, 2_000),
    FirstNetwork("huge", 64, (1, 2, 4, 4), 2, 8, 500_000, 20_000),
)
SECOND: tuple[SecondNetwork, ...] = (
    SecondNetwork("small", 48, (1, 2), (1, 2, 2), 1, 128, 0, 0),
    SecondNetwork("medium", 64, (1, 2), (1, 2, 3), 1, 128, 60_000, 100),
    SecondNetwork("large", 96, (1, 2), (1, 2, 4), 1, 256, 500_000, 2_000),
    SecondNetwork("huge", 128, (1, 3), (1, 2, 4), 2, 256, 2_000_000, 20_000),
    SecondNetwork("giant", 192, (1, 3), (1, 2, 4), 2, 512, 10_000_000, 200_000),
)


def attention_factors(multipliers: Sequence[int], side: int) -> list[int]:
    """The levels of a denoiser that have attention, by their downsampling factors."""
    return [2**level for level in range(len(multipliers)) if side >> level <= ATTENDED]


def conditioner_settings(kind: str, text: int, tokens: int, captions: int, factor: int) -> dict[str, Any]:
    """The conditioner of a kind; `text` is its width, `tokens` the longest caption's."""
    match kind:
        case "text":
            return {
                "kind": "text",
                "dim": text,
                "depth": 2,
                "heads": 4,
                "head_dim": text // 4,
                "max_tokens": min(64, max(8, 8 * -(-tokens // 8))),
                "vocabulary": 512 if captions < 500 else 4096,
                "pooled": True,
            }
        case "semantic":
            return {"kind": "semantic", "classes": 0, "channels": 8, "stages": int(log2(factor)), "void": 255}
        case "layout":
            heads = {"dim": text, "depth": 2, "heads": 4, "head_dim": text // 4}
            return {"kind": "layout", "classes": 0, "objects": 8, "crop_tokens": False, "vocabulary": 8192, **heads}
    return {"kind": "none"}


def _products(widths: Sequence[int], side: int, blocks: int) -> float:
    """Multiplications of the forward pass: two convolutions a block, blocks on the way down and one more on the way
    up."""
    levels = sum((side >> level) ** 2 * width**2 for level, width in enumerate(widths))
    middle = (side >> (len(widths) - 1)) ** 2 * widths[-1] ** 2
    return 2 * KERNEL * ((2 * blocks + 1) * levels + 4 * middle)


def _elements(widths: Sequence[int], side: int, blocks: int) -> float:
    return (2 * blocks + 1) * sum((side >> level) ** 2 * width for level, width in enumerate(widths))


def _weights(widths: Sequence[int], blocks: int) -> int:
    return 2 * KERNEL * ((2 * blocks + 1) * sum(width**2 for width in widths) + 4 * widths[-1] ** 2)
