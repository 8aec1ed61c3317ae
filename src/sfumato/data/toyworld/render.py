"""Renders scenes to images, semantic maps and boxes, in numpy on small patches: fast on one core."""

from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from sfumato.data.toyworld.scene import Scene, SceneObject
from sfumato.data.toyworld.shapes import HALF_EXTENT, distance
from sfumato.data.toyworld.vocabulary import BACKGROUNDS, COLOURS, SHAPES, rgb
from sfumato.errors import UserError

Array = NDArray[np.floating[Any]]
Size = int | tuple[int, int]

SMALLEST = 32
MAP_NAMES: tuple[str, ...] = ("background", *SHAPES)
_CHECKS = 4  # squares along the shorter side
PERIOD = {"small": 0.096, "large": 0.118}  # of stripes and dots, as a fraction of the shorter side
_RIM = 0.1  # textured objects keep an outline of their own colour, as a fraction of the radius
_SHADING = 0.07


def height_width(size: Size) -> tuple[int, int]:
    """(H, W) of a size; raises UserError below 32 pixels."""
    height, width = (size, size) if isinstance(size, int) else size
    if min(height, width) < SMALLEST:
        raise UserError(f"size {size} is too small for the toy world: use {SMALLEST} or more")
    return height, width


@lru_cache(maxsize=64)
def background(name: str, height: int, width: int) -> Array:
    """The image without objects (3, H, W), float32 in [0, 255]. Read-only because it is cached and shared."""
    first, second = rgb(BACKGROUNDS[name])[:, :, None, None]
    if name == "checkered":
        cell = min(height, width) / _CHECKS
        rows = np.floor((np.arange(height) + 0.5) / cell)[:, None]
        columns = np.floor((np.arange(width) + 0.5) / cell)[None]
        blend = (rows + columns) % 2
    else:
        blend = np.broadcast_to(((np.arange(height) + 0.5) / height)[:, None], (height, width))
    canvas = (first + (second - first) * blend).astype(np.float32)
    canvas.flags.writeable = False
    return canvas


def _patches(
    objects: Sequence[SceneObject], shape: str, height: int, width: int
) -> tuple[NDArray[np.intp], Array, Array, Array]:
    """Top-left corners (n, 2), and for the pixels of equal patches (n, P, P): distance, x, y, all in pixels."""
    side = min(height, width)
    centre = np.array([(item.y * height, item.x * width) for item in objects], np.float32)
    radius = np.array([item.diameter * side / 2 for item in objects], np.float32)
    reach = int(np.ceil(radius.max() * 1.02 + 1))
    corner = np.floor(centre).astype(np.intp) - reach
    steps = np.arange(2 * reach + 1, dtype=np.float32) + 0.5
    y = (corner[:, 0, None] + steps - centre[:, 0, None])[:, :, None]
    x = (corner[:, 1, None] + steps - centre[:, 1, None])[:, None, :]
    y, x = np.broadcast_arrays(y, x)
    scale = radius[:, None, None]
    return corner, distance(shape, x / scale, y / scale) * scale, x, y


def accent_share(texture: str, x: Array, y: Array, period: float) -> Array:
    """The share of the accent colour in each pixel, in [0, 1]; x, y in pixels from the object's centre."""
    if texture == "striped":
        phase = (x + y) * np.float32(2**-0.5) / period + 0.25
        edge = (np.abs(phase - np.floor(phase) - 0.5) - 0.25) * period
    else:
        row = np.floor(y / (period * 0.87) + 0.5)
        u = x / period + 0.5 * (row % 2)
        dx, dy = (u - np.floor(u + 0.5)) * period, y - row * period * 0.87
        edge = np.sqrt(dx * dx + dy * dy) - 0.31 * period
    return np.clip(0.5 - edge, 0.0, 1.0)


def _paint(
    objects: Sequence[SceneObject], shape: str, height: int, width: int
) -> tuple[NDArray[np.intp], Array, Array]:
    """Corners (n, 2), coverage (n, P, P) in [0, 1] and colour (n, 3, P, P) in [0, 255] of objects of one shape."""
    side = min(height, width)
    corner, away, x, y = _patches(objects, shape, height, width)
    coverage = np.clip(0.5 - away, 0.0, 1.0)
    accent = np.zeros_like(coverage)
    for i, item in enumerate(objects):
        if item.texture != "plain":
            rim = _RIM * item.diameter * side / 2
            inner = np.clip(0.5 - away[i] - rim, 0.0, 1.0)
            accent[i] = inner * accent_share(item.texture, x[i], y[i], PERIOD[item.size] * side)
    tones = np.array([COLOURS[item.colour] for item in objects], np.float32)[..., None, None]
    base, second = tones[:, 0], tones[:, 1]
    colour = base + (second - base) * accent[:, None]
    radius = np.array([item.diameter * side / 2 for item in objects], np.float32)[:, None, None]
    light = 1 - _SHADING * np.clip((x + 2 * y) / (2.2 * radius), -1, 1)
    return corner, coverage, np.minimum(colour * light[:, None], 255.0)


def _by_shape(scenes: Sequence[Scene]) -> dict[str, list[tuple[int, SceneObject]]]:
    found: dict[str, list[tuple[int, SceneObject]]] = {}
    for index, scene in enumerate(scenes):
        for item in scene.objects:
            found.setdefault(item.shape, []).append((index, item))
    return found


def _window(corner: NDArray[np.intp], patch: int, height: int, width: int) -> tuple[slice, slice, slice, slice]:
    """The slices of the canvas that a patch covers, and of the part of the patch inside the canvas."""
    top, left = int(corner[0]), int(corner[1])
    y0, y1, x0, x1 = max(top, 0), min(top + patch, height), max(left, 0), min(left + patch, width)
    return slice(y0, y1), slice(x0, x1), slice(y0 - top, y1 - top), slice(x0 - left, x1 - left)


def render(scenes: Sequence[Scene], size: Size) -> Tensor:
    """Images of scenes, uint8 (B, 3, H, W), anti-aliased; `size` is H = W or (H, W), at least 32 (else UserError)."""
    height, width = height_width(size)
    canvas = np.empty((len(scenes), 3, height, width), np.float32)
    for index, scene in enumerate(scenes):
        canvas[index] = background(scene.background, height, width)
    for shape, entries in _by_shape(scenes).items():
        corners, coverage, colour = _paint([item for _, item in entries], shape, height, width)
        patch = coverage.shape[-1]
        for (index, _), corner, alpha, paint in zip(entries, corners, coverage, colour, strict=True):
            rows, columns, inner_rows, inner_columns = _window(corner, patch, height, width)
            under = canvas[index, :, rows, columns]
            under += (paint[:, inner_rows, inner_columns] - under) * alpha[inner_rows, inner_columns]
    return torch.from_numpy((canvas + 0.5).astype(np.uint8))


def semantic_maps(scenes: Sequence[Scene], size: Size) -> Tensor:
    """Class of each pixel, uint8 (B, H, W): indices into `MAP_NAMES` (0 background, then by shape)."""
    height, width = height_width(size)
    canvas = np.zeros((len(scenes), height, width), np.uint8)
    for shape, entries in _by_shape(scenes).items():
        corners, away, _, _ = _patches([item for _, item in entries], shape, height, width)
        for (index, _), corner, depth in zip(entries, corners, away, strict=True):
            rows, columns, inner_rows, inner_columns = _window(corner, depth.shape[-1], height, width)
            canvas[index, rows, columns][depth[inner_rows, inner_columns] < 0] = MAP_NAMES.index(shape)
    return torch.from_numpy(canvas)


def boxes(scene: Scene, size: Size) -> list[tuple[int, float, float, float, float]]:
    """One (class, x0, y0, x1, y1) per object, in caption order: class into `MAP_NAMES`, coordinates in [0, 1]."""
    height, width = height_width(size)
    side = min(height, width)
    found = []
    for item in scene.objects:
        reach_x, reach_y = HALF_EXTENT[item.shape]
        dx, dy = reach_x * item.diameter / 2 * side / width, reach_y * item.diameter / 2 * side / height
        found.append((MAP_NAMES.index(item.shape), item.x - dx, item.y - dy, item.x + dx, item.y + dy))
    return found
