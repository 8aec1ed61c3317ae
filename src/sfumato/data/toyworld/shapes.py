"""The shapes as signed distance functions: negative inside, in units of the radius, image axes (y down).

`HALF_EXTENT` is the extent of each from its centre: at most one radius, so the diameter bounds every shape.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.floating[Any]]

HALF_EXTENT: dict[str, tuple[float, float]] = {
    "circle": (0.96, 0.96),
    "square": (0.86, 0.86),
    "triangle": (1.0, 0.9),
    "star": (0.99, 0.945),
    "cross": (0.95, 0.95),
    "ring": (1.0, 1.0),
    "heart": (0.98, 0.896),
    "diamond": (0.78, 1.0),
}
_RING_INNER = 0.46


def _polygon(points: list[tuple[float, float]], rounding: float) -> Callable[[Array, Array], Array]:
    """The exact distance to a simple polygon, its corners rounded outwards by `rounding`."""
    corners = np.array(points, np.float32)

    def distance(x: Array, y: Array) -> Array:
        squared = np.full_like(x, np.inf)
        inside = np.zeros(x.shape, bool)
        for (ax, ay), (bx, by) in zip(corners, np.roll(corners, -1, axis=0), strict=True):
            ex, ey = bx - ax, by - ay
            px, py = x - ax, y - ay
            along = np.clip((px * ex + py * ey) / (ex * ex + ey * ey), 0.0, 1.0)
            squared = np.minimum(squared, (px - ex * along) ** 2 + (py - ey * along) ** 2)
            if ey != 0:
                inside ^= ((ay > y) != (by > y)) & (px < ex * py / ey)
        return np.where(inside, -np.sqrt(squared), np.sqrt(squared)) - rounding

    return distance


def _star_points(outer: float, inner: float) -> list[tuple[float, float]]:
    angles = np.pi / 5 * np.arange(10) - np.pi / 2
    radii = np.where(np.arange(10) % 2 == 0, outer, inner)
    points = np.stack([radii * np.cos(angles), radii * np.sin(angles)], axis=1)
    points[:, 1] -= (
        points[:, 1].min() + points[:, 1].max()
    ) / 2  # a pentagram's box is not centred on its tips' circle
    return [(float(x), float(y)) for x, y in points]


def _box(x: Array, y: Array, half_x: float, half_y: float, rounding: float) -> Array:
    dx, dy = np.abs(x) - (half_x - rounding), np.abs(y) - (half_y - rounding)
    outside = np.sqrt(np.maximum(dx, 0) ** 2 + np.maximum(dy, 0) ** 2)
    return outside + np.minimum(np.maximum(dx, dy), 0) - rounding


def _cross(x: Array, y: Array) -> Array:
    return np.minimum(_box(x, y, 0.95, 0.34, 0.06), _box(x, y, 0.34, 0.95, 0.06))


def _heart(x: Array, y: Array) -> Array:
    """A square standing on its corner with a half-disc on each upper side, the tip at the origin, y up."""
    scale = 0.98 / (0.25 + 0.125**0.5)
    u, v = np.abs(x) / scale, 0.5 * (0.75 + 0.125**0.5) - y / scale
    lobe = np.sqrt((u - 0.25) ** 2 + (v - 0.75) ** 2) - 0.125**0.5
    foot = 0.5 * np.maximum(u + v, 0.0)
    edge = np.sqrt(np.minimum(u**2 + (v - 1.0) ** 2, (u - foot) ** 2 + (v - foot) ** 2)) * np.sign(u - v)
    return np.where(u + v > 1.0, lobe, edge) * scale


_DISTANCES: dict[str, Callable[[Array, Array], Array]] = {
    "circle": lambda x, y: np.sqrt(x * x + y * y) - 0.96,
    "square": lambda x, y: _box(x, y, 0.86, 0.86, 0.08),
    "triangle": _polygon([(0.0, -0.83), (0.93, 0.83), (-0.93, 0.83)], 0.07),
    "star": _polygon(_star_points(1.0, 0.46), 0.04),
    "cross": _cross,
    "ring": lambda x, y: np.abs(np.sqrt(x * x + y * y) - (1 + _RING_INNER) / 2) - (1 - _RING_INNER) / 2,
    "heart": _heart,
    "diamond": _polygon([(0.0, -0.95), (0.73, 0.0), (0.0, 0.95), (-0.73, 0.0)], 0.05),
}


def distance(shape: str, x: Array, y: Array) -> Array:
    """Signed distance to a shape's outline at (x, y), any shape of array, in units of the radius."""
    return _DISTANCES[shape](x, y)
