"""Places objects: every arrangement keeps them apart and inside the image.

Coordinates are fractions of width and height; radii are fractions of the shorter side, so in an image that is not
square objects can only be further apart than here.
"""

import hashlib
from collections.abc import Sequence
from typing import TypeVar

from sfumato.rng import derive

Point = tuple[float, float]
Item = TypeVar("Item")

MARGIN = 0.03
GAP = 0.07
NARROW_GAP = 0.05  # between three in a row, which would not fit otherwise


class RandomStream:
    """A stream of uniform random numbers from a seed and keys; computed by hashing, so equal on every machine."""

    def __init__(self, seed: int, *keys: int | str) -> None:
        self._key = derive(seed, *keys).to_bytes(8, "little")
        self._block = 0
        self._values: list[int] = []

    def uniform(self, low: float = 0.0, high: float = 1.0) -> float:
        """A number in [low, high)."""
        if not self._values:
            block = hashlib.blake2b(self._block.to_bytes(8, "little"), key=self._key).digest()
            self._values = [int.from_bytes(block[i : i + 4], "little") for i in range(0, 64, 4)]
            self._block += 1
        return low + (high - low) * self._values.pop() / 2**32

    def choice(self, items: Sequence[Item]) -> Item:
        """A random item, uniformly."""
        return items[int(self.uniform() * len(items))]


def line(stream: RandomStream, radii: Sequence[float]) -> list[float]:
    """Centres along one axis, in order, with random gaps."""
    gap = GAP if len(radii) < 3 else NARROW_GAP
    slack = 1.0 - 2 * MARGIN - 2 * sum(radii) - gap * (len(radii) - 1)
    shares = [stream.uniform(0.15, 1.0) for _ in range(len(radii) + 1)]
    total = sum(shares)
    edge = MARGIN
    centres = []
    for radius, share in zip(radii, shares, strict=False):
        edge += slack * share / total
        centres.append(edge + radius)
        edge += 2 * radius + gap
    return centres


def across_axis(stream: RandomStream, radii: Sequence[float], jitter: float) -> list[float]:
    """Centres along the other axis, near the middle and inside the image."""
    common = stream.uniform(-jitter, jitter)
    centres = []
    for radius in radii:
        room = 0.5 - MARGIN - radius
        offset = common + stream.uniform(-jitter, jitter) / 2
        centres.append(0.5 + max(-room, min(room, offset)))
    return centres


def on_axis(stream: RandomStream, radii: Sequence[float], vertical: bool, jitter: float = 0.12) -> list[Point]:
    """Positions from left to right, or from top to bottom."""
    along, across = line(stream, radii), across_axis(stream, radii, jitter)
    return [(a, b) if not vertical else (b, a) for a, b in zip(along, across, strict=True)]


_GROUPS: dict[int, tuple[tuple[Point, ...], ...]] = {
    2: (
        ((0.25, 0.5), (0.75, 0.5)),
        ((0.5, 0.25), (0.5, 0.75)),
        ((0.26, 0.26), (0.74, 0.74)),
        ((0.74, 0.26), (0.26, 0.74)),
    ),
    3: (((0.5, 0.27), (0.27, 0.7), (0.73, 0.7)), ((0.27, 0.3), (0.73, 0.3), (0.5, 0.73)), ()),
    4: (((0.27, 0.27), (0.73, 0.27), (0.27, 0.73), (0.73, 0.73)),),
}


def group(stream: RandomStream, count: int, radius: float) -> list[Point]:
    """Positions of `count` equal objects: a jittered pattern, or three in a row."""
    pattern = stream.choice(_GROUPS[count])
    if not pattern:
        return on_axis(stream, [radius] * count, vertical=stream.uniform() < 0.5)
    closest = min(max(abs(a[0] - b[0]), abs(a[1] - b[1])) for i, a in enumerate(pattern) for b in pattern[:i])
    jitter = max(0.0, min(0.05, (closest - 2 * radius - GAP) / 2))
    return [_inside(stream, point, jitter, radius) for point in pattern]


def spot(stream: RandomStream, centre: Point, radius: float) -> Point:
    """A position near `centre`, inside the image."""
    return _inside(stream, centre, 0.04, radius)


def _inside(stream: RandomStream, centre: Point, jitter: float, radius: float) -> Point:
    low, high = MARGIN + radius, 1 - MARGIN - radius
    x, y = (max(low, min(high, value + stream.uniform(-jitter, jitter))) for value in centre)
    return x, y
