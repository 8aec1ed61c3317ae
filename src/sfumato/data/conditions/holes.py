"""Masks for inpainting: boxes, strokes, and the thin, medium and thick polylines that LaMa was trained with.

Suvorov et al. 2022 (LaMa) use chains of segments of random length, angle and width, and boxes beside thick ones. All
lengths here are fractions of the shorter side, so a mask looks the same at any size.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from sfumato.data.conditions.config import HoleKind

Hole = NDArray[np.bool_]

LEAST, MOST = 0.01, 0.8
"""Shares of the image's area; masks outside this range are rejected."""
_TRIES = 20


@dataclass(frozen=True)
class _Chains:
    """How many chains, of how many segments, how long and how wide (fractions of the shorter side); boxes likewise."""

    chains: tuple[int, int]
    segments: tuple[int, int]
    length: tuple[float, float]
    width: tuple[float, float]
    boxes: float = 0.0  # how often boxes replace the chains


_KINDS: dict[HoleKind, _Chains] = {
    "strokes": _Chains((1, 4), (1, 3), (0.1, 0.6), (0.04, 0.12)),
    "thin": _Chains((2, 8), (2, 8), (0.04, 0.2), (0.01, 0.04)),
    "medium": _Chains((1, 5), (2, 5), (0.08, 0.4), (0.04, 0.15), 0.2),
    "thick": _Chains((1, 4), (2, 5), (0.1, 0.6), (0.12, 0.3), 0.4),
}


def random_hole(kinds: Sequence[HoleKind], size: tuple[int, int], rng: np.random.Generator) -> Hole:
    """One mask (H, W), True in the hole, of one of the kinds; between LEAST and MOST of the image is hole."""
    kind = kinds[int(rng.integers(len(kinds)))]
    for _ in range(_TRIES):
        hole = _random_of_kind(kind, size, rng)
        if LEAST <= hole.mean() <= MOST:
            return hole
    return _boxes(size, rng, 1)


def _random_of_kind(kind: HoleKind, size: tuple[int, int], rng: np.random.Generator) -> Hole:
    if kind == "box":
        return _boxes(size, rng, 1)
    chains = _KINDS[kind]
    if rng.random() < chains.boxes:
        return _boxes(size, rng, int(rng.integers(1, 4)))
    return _polylines(chains, size, rng)


def _boxes(size: tuple[int, int], rng: np.random.Generator, count: int) -> Hole:
    """Boxes with sides from an eighth to six tenths of the image's; several are smaller."""
    H, W = size
    hole = np.zeros(size, bool)
    for _ in range(count):
        largest = 0.6 if count == 1 else 0.4
        h, w = (max(1, round(side * rng.uniform(0.125, largest))) for side in (H, W))
        top, left = int(rng.integers(H - h + 1)), int(rng.integers(W - w + 1))
        hole[top : top + h, left : left + w] = True
    return hole


def _polylines(chains: _Chains, size: tuple[int, int], rng: np.random.Generator) -> Hole:
    H, W = size
    side = min(H, W)
    canvas = Image.new("L", (W, H), 0)
    pen = ImageDraw.Draw(canvas)
    for _ in range(int(rng.integers(chains.chains[0], chains.chains[1] + 1))):
        width = max(1.0, side * rng.uniform(*chains.width))
        x, y = rng.uniform(0, W), rng.uniform(0, H)
        angle = rng.uniform(0, 2 * math.pi)
        points = [(x, y)]
        for _ in range(int(rng.integers(chains.segments[0], chains.segments[1] + 1))):
            angle += rng.normal(0, 1.0)
            length = side * rng.uniform(*chains.length)
            x = min(max(x + length * math.cos(angle), 0.0), float(W))
            y = min(max(y + length * math.sin(angle), 0.0), float(H))
            points.append((x, y))
        pen.line(points, fill=255, width=round(width))
        for px, py in points:  # round ends and joints
            pen.ellipse((px - width / 2, py - width / 2, px + width / 2, py + width / 2), fill=255)
    return np.asarray(canvas).astype(bool)


def cells_of(hole: Hole, factor: int) -> Hole:
    """(H, W) -> (H / factor, W / factor): a cell of the latent's grid is a hole where any of its pixels is."""
    H, W = hole.shape
    return np.asarray(hole.reshape(H // factor, factor, W // factor, factor).any((1, 3)))
