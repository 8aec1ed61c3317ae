"""Recognises the objects in an image of the toy world without a network: positions and attributes.

Segments against the best fitting background, labels the components, then matches each with the palette (colour), with
rendered templates of every shape (shape, size) and with the patterns (texture). An attribute that matches nothing is
"unclear", and no fact about it is true. All colour distances are in a linear luma-chroma space, where the effect of
blur and noise is small.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from sfumato.data.toyworld.components import label
from sfumato.data.toyworld.render import PERIOD, SMALLEST, accent_share, background
from sfumato.data.toyworld.shapes import distance
from sfumato.data.toyworld.vocabulary import BACKGROUNDS, COLOURS, SHAPES, SIZE_BOUNDARY

Array = NDArray[np.floating[Any]]

UNCLEAR = "unclear"
VOID = 255
"""The value of a pixel without a class in `read_maps`."""
_LUMA_CHROMA = np.array([[0.299, 0.587, 0.114], [0.6, -0.5, -0.1], [-0.2, -0.4, 0.6]], np.float32)
_WORKING_SIDE = 64  # larger images are averaged down to at least this: removes noise, preserves shapes
_FOREGROUND = 26.0  # distance from the background that makes a pixel part of an object
_DEBRIS = 0.006  # components of less than this part of the squared shorter side are not objects
_WORST_FIT = 0.66  # overlap with the best template below which a shape is unclear
_DOUBTFUL_FIT = 0.75
_WORST_COLOUR = 42.0
_TEXTURE_SPREAD = 0.17  # standard deviation between base (0) and accent (1) from which an object is textured
_DEPTH = 1.6  # how far inside a shape, in pixels, its texture is read
_WORST_PATTERN = 0.45  # correlation with every pattern below which a texture is unclear
# Phases of a pattern to try, in periods: scenes centre it, but a generated object may be striped in any phase.
_SHIFTS = {
    "striped": tuple((2**0.5 * step / 8, 0.0) for step in range(8)),
    "dotted": tuple((column / 5, 1.74 * row / 8) for row in range(8) for column in range(5)),
}
_SIZE_LIMITS = (0.18, 0.54)


@dataclass(frozen=True)
class DetectedObject:
    """One detected object. x, y, box (x0, y0, x1, y1): fractions of width and height; diameter: of the shorter side.

    `fit` is the overlap with the template of its shape, in [0, 1]. Attributes are words of the world or "unclear".
    """

    shape: str
    colour: str
    size: str
    texture: str
    x: float
    y: float
    diameter: float
    box: tuple[float, float, float, float]
    fit: float


@dataclass(frozen=True)
class Reading:
    """The content of an image: objects from the largest to the smallest; `aspect` is width over height."""

    objects: tuple[DetectedObject, ...]
    background: str
    aspect: float = 1.0


class _Fit(NamedTuple):
    """A shape's template on a window: overlap in [0, 1], centre and radius in pixels."""

    shape: str
    overlap: float
    x: float
    y: float
    radius: float


def read(image: Tensor) -> Reading:
    """Reads one image (3, H, W), uint8 or float in [-1, 1]; ValueError for another shape or below 32 pixels."""
    return read_batch(image[None])[0]


def read_batch(images: Tensor) -> list[Reading]:
    """Reads images (B, 3, H, W), uint8 or float in [-1, 1]: same result as one by one, but faster."""
    aspect = images.shape[3] / images.shape[2]
    return [Reading(tuple(found.item for found in all_), name, aspect) for name, all_, _ in _look(images)]


def read_maps(images: Tensor) -> Tensor:
    """Which class each pixel of images (B, 3, H, W) shows: uint8 (B, H, W), as in `render.semantic_maps`.

    A pixel that an object covers by more than half has the class of its shape, `VOID` where the shape is unclear; too
    small components are `VOID`, everything else is background. Errors as `read_batch`.
    """
    maps = []
    for _, found, small in _look(images):
        seen = np.where(small, VOID, 0).astype(np.uint8)
        for one in found:
            number = VOID if one.item.shape == UNCLEAR else 1 + SHAPES.index(one.item.shape)
            seen[one.rows, one.columns][one.coverage > 0.5] = number
        maps.append(torch.from_numpy(seen))
    size = (images.shape[2], images.shape[3])
    return torch.nn.functional.interpolate(torch.stack(maps)[:, None], size=size, mode="nearest-exact")[:, 0]


class _Found(NamedTuple):
    """One component: the object, and its coverage in [0, 1] of each pixel of a window of the working copy."""

    item: DetectedObject
    rows: slice
    columns: slice
    coverage: Array


def _look(images: Tensor) -> Iterator[tuple[str, list[_Found], NDArray[np.bool_]]]:
    """For each image: name of the background, objects from the largest to the smallest, mask of the debris (h, w)."""
    if images.ndim != 4 or images.shape[1] != 3 or min(images.shape[2:]) < SMALLEST:
        raise ValueError(
            f"the reader requires images (B, 3, H, W) of {SMALLEST} pixels or more, not {tuple(images.shape)}"
        )
    small = _working_copy(images)
    fitted = [_fit_background(image) for image in small]
    away = np.stack([apart for _, apart in fitted])
    labels = label(away > _FOREGROUND)
    side = min(small.shape[2:])
    for image, (name, apart), marks in zip(small, fitted, labels, strict=True):
        identities, areas = np.unique(marks, return_counts=True)
        order = sorted(zip(-areas, identities, strict=True))
        kept = [int(mark) for area, mark in order if mark and -area >= _DEBRIS * side * side]
        debris = (marks != 0) & ~np.isin(marks, kept)
        yield name, [_explain(image, apart, marks, mark) for mark in kept], debris


def _working_copy(images: Tensor) -> Array:
    """Luma-chroma planes (B, 3, h, w); h and w are approximately the working size."""
    values = images.detach().cpu()
    values = (values.float() + 1) * 127.5 if values.is_floating_point() else values.float()
    factor = min(values.shape[2:]) // _WORKING_SIDE
    if factor > 1:
        values = torch.nn.functional.avg_pool2d(values, factor)
    pixels: Array = values.clamp(0, 255).numpy()
    return np.einsum("kc,bchw->bkhw", _LUMA_CHROMA, pixels, optimize=True)


@lru_cache(maxsize=16)
def _backgrounds(height: int, width: int) -> Array:
    """All backgrounds in luma-chroma (n, 3, H, W)."""
    stack = np.stack([background(name, height, width) for name in BACKGROUNDS])
    return np.einsum("kc,nchw->nkhw", _LUMA_CHROMA, stack, optimize=True)


@lru_cache(maxsize=1)
def _palette() -> tuple[Array, Array]:
    """Base colours and accents in luma-chroma, both (n, 3)."""
    tones = np.array(list(COLOURS.values()), np.float32) @ _LUMA_CHROMA.T
    return tones[:, 0], tones[:, 1]


def _length(difference: Array, axis: int) -> Array:
    return np.sqrt(np.square(difference).sum(axis=axis))


def _fit_background(image: Array) -> tuple[str, Array]:
    """The name of the background and each pixel's distance from it (h, w), after removing a global colour shift."""
    candidates = _backgrounds(*image.shape[1:])
    apart = _length(candidates - image, axis=1)
    closeness = np.clip(1 - apart / 40, 0, None).mean(axis=(1, 2))
    best = int(closeness.argmax())
    near = apart[best] < 40
    if near.mean() < 0.3:
        return UNCLEAR, apart[best]
    difference = image - candidates[best]
    shift = np.median(difference[:, near], axis=1)
    return list(BACKGROUNDS)[best], _length(difference - shift[:, None, None], axis=0)


def _explain(image: Array, apart: Array, marks: NDArray[np.int32], mark: int) -> _Found:
    """Recognises the object of one component."""
    height, width = marks.shape
    side = min(height, width)
    ys, xs = np.nonzero(marks == mark)
    y0, y1 = max(int(ys.min()) - 2, 0), min(int(ys.max()) + 3, height)
    x0, x1 = max(int(xs.min()) - 2, 0), min(int(xs.max()) + 3, width)
    window = np.s_[y0:y1, x0:x1]
    mine = marks[window] == mark
    pixels = image[:, y0:y1, x0:x1]
    colour, misfits = _explain_colour(pixels, mine)
    padded = np.pad(mine, 1)
    nearby = padded[:-2] | padded[1:-1] | padded[2:]
    nearby = nearby[:, :-2] | nearby[:, 1:-1] | nearby[:, 2:]
    coverage, fitted = np.zeros_like(pixels[0]), _Fit(UNCLEAR, -1.0, 0.0, 0.0, 0.0)
    for misfit in misfits:  # the likelier first; the other only if the first fits badly
        if fitted.overlap < _DOUBTFUL_FIT:
            share = apart[window] / (apart[window] + misfit + 1e-6)
            covered = np.where(nearby, np.clip((share - 0.2) / 0.6, 0.0, 1.0), 0.0)
            attempt = _explain_shape(covered)
            if attempt.overlap > fitted.overlap:
                coverage, fitted = covered, attempt
    shape, fit, centre_x, centre_y, radius = fitted
    diameter = 2 * radius / side
    texture = UNCLEAR
    if UNCLEAR not in (shape, colour):
        y = np.arange(y1 - y0, dtype=np.float32)[:, None] + 0.5 - centre_y
        x = np.arange(x1 - x0, dtype=np.float32)[None] + 0.5 - centre_x
        x, y = np.broadcast_arrays(x, y)
        depth = -distance(shape, x / radius, y / radius) * radius
        inside = depth > min(_DEPTH, 0.6 * float(depth.max()))
        period = PERIOD["small" if diameter < SIZE_BOUNDARY else "large"] * side
        texture = _explain_texture(_accent(pixels[0], colour)[inside], x[inside], y[inside], period)
    size = UNCLEAR
    if _SIZE_LIMITS[0] <= diameter <= _SIZE_LIMITS[1]:
        size = "small" if diameter < SIZE_BOUNDARY else "large"
    solid = coverage > 0.5
    rows, columns = np.nonzero(solid.any(1))[0], np.nonzero(solid.any(0))[0]
    if not len(rows):
        rows, columns = np.array([0]), np.array([0])
    box = (
        float(x0 + columns[0]) / width,
        float(y0 + rows[0]) / height,
        float(x0 + columns[-1] + 1) / width,
        float(y0 + rows[-1] + 1) / height,
    )
    item = DetectedObject(
        shape, colour, size, texture, (x0 + centre_x) / width, (y0 + centre_y) / height, diameter, box, fit
    )
    return _Found(item, slice(y0, y1), slice(x0, x1), coverage)


def _core(mask: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """The mask without its border pixels, or the mask itself if too little would remain."""
    padded = np.pad(mask, 1)
    core = mask & padded[:-2, 1:-1] & padded[2:, 1:-1] & padded[1:-1, :-2] & padded[1:-1, 2:]
    return core if core.sum() >= 6 else mask


def _explain_colour(pixels: Array, mask: NDArray[np.bool_]) -> tuple[str, tuple[Array, ...]]:
    """The colour's name; the pixels' distances (h, w) from its base and from blends with its accent, likelier first."""
    base, accent = _palette()
    core = pixels[:, _core(_core(mask))].T  # (p, 3)
    axis = accent - base
    place = np.clip(np.einsum("npk,nk->np", core[None] - base[:, None], axis) / (axis**2).sum(1)[:, None], 0, 1)
    residual = _length(core[None] - base[:, None] - place[..., None] * axis[:, None], axis=2).mean(1)
    textured = np.where(place.std(axis=1) > _TEXTURE_SPREAD, residual + 3, np.inf)
    plain = _length(core[None] - base[:, None], axis=2).mean(1)
    cost = np.minimum(plain, textured)
    best = int(cost.argmin())
    name = list(COLOURS)[best] if cost[best] < _WORST_COLOUR else UNCLEAR
    difference = pixels - base[best][:, None, None]
    along = np.clip(np.tensordot(axis[best], difference, 1) / (axis[best] ** 2).sum(), 0, 1)
    misfits = _length(difference, axis=0), _length(difference - along[None] * axis[best][:, None, None], axis=0)
    return name, misfits[:: 1 if plain[best] <= textured[best] else -1]


def _accent(luma: Array, colour: str) -> Array:
    """Position of each pixel between base (0) and accent (1), by luma alone, which is sharper than chroma."""
    base, accent = _palette()
    index = list(COLOURS).index(colour)
    return (luma - base[index, 0]) / (accent[index, 0] - base[index, 0])


def _explain_texture(accent: Array, x: Array, y: Array, period: float) -> str:
    """The texture of the pixels (p,) well inside an object, at x, y from its centre.

    Plain if the tone hardly varies; else the pattern, rendered in every phase, with the highest correlation.
    """
    if accent.size < 4 or accent.std() < _TEXTURE_SPREAD:
        return "plain"
    seen = accent - accent.mean()
    best = {}
    for name, shifts in _SHIFTS.items():
        dx, dy = np.array(shifts, np.float32).T[..., None] * period
        patterns = accent_share(name, x - dx, y - dy, period)  # (shifts, p)
        patterns = patterns - patterns.mean(axis=1, keepdims=True)
        scale = np.sqrt(np.square(patterns).sum(axis=1) * np.square(seen).sum())
        best[name] = float((patterns @ seen / np.maximum(scale, 1e-6)).max())
    return max(best, key=lambda name: best[name]) if max(best.values()) > _WORST_PATTERN else UNCLEAR


@lru_cache(maxsize=1)
def _moments() -> dict[str, tuple[float, float]]:
    """Area and centroid height of each shape of radius 1."""
    grid = np.linspace(-1.1, 1.1, 441, dtype=np.float32)
    y, x = np.meshgrid(grid, grid, indexing="ij")
    inside = {shape: distance(shape, x, y) < 0 for shape in SHAPES}
    return {shape: (float(mask.sum()) * (2.2 / 440) ** 2, float(y[mask].mean())) for shape, mask in inside.items()}


def _explain_shape(coverage: Array) -> _Fit:
    """The shape whose template, of equal area and centroid, overlaps best."""
    area = float(coverage.sum())
    rows = np.arange(coverage.shape[0], dtype=np.float32)[:, None] + 0.5
    columns = np.arange(coverage.shape[1], dtype=np.float32)[None] + 0.5
    if area < 1:
        return _Fit(UNCLEAR, 0.0, coverage.shape[1] / 2, coverage.shape[0] / 2, 1.0)
    middle_x, middle_y = float((coverage * columns).sum()) / area, float((coverage * rows).sum()) / area
    best = _Fit(UNCLEAR, 0.0, middle_x, middle_y, float(np.sqrt(area / np.pi)))
    for shape, (unit_area, centroid) in _moments().items():
        radius = float(np.sqrt(area / unit_area))
        centre_y = middle_y - centroid * radius
        x, y = np.broadcast_arrays((columns - middle_x) / radius, (rows - centre_y) / radius)
        template = np.clip(0.5 - distance(shape, x, y) * (radius / 1.4), 0.0, 1.0)
        overlap = float(np.minimum(coverage, template).sum() / np.maximum(coverage, template).sum())
        if overlap > best.overlap:
            best = _Fit(shape, overlap, middle_x, centre_y, radius)
    return best if best.overlap >= _WORST_FIT else best._replace(shape=UNCLEAR)
