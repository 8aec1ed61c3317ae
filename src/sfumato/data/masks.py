"""Reading masks, for training and sampling: which pixels of an image are the hole.

White is the hole. Other forms that editors and programs save are read as well: an erased part of an image, 0 and 1,
16 bits, a colour on black. An image that is not a mask is refused.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFilter

from sfumato.data.wide import WIDE
from sfumato.errors import UserError

_FULL = 250.0  # from 0 to this the range of 8 bits counts as whole
_SLACK = 5.0
_GREY = (0.15, 0.85)  # of the range: what is neither kept nor hole
_LEVELS = 8  # as many greys may lie anywhere: a few steps of opacity, compression
_OFF = 0.22  # of the range: how far from a soft edge a pixel may be
_MOST_OFF = 0.01  # of all pixels
_FLAT = 0.04  # of the range: as good as black or white
_MOSTLY = 0.1  # of all pixels: with as many of those, greys that change smoothly are a soft edge
_AWAY = 40.0  # levels from the line between two colours
_ORDER = "give the image first and its mask after it (IMAGE MASK), the mask white where the hole is"
_ROUGH = 0.03
_SIDE = 256  # masks are checked at this size at most
_RADII = (0, 1, 2, 4, 8, 16, 32, 64, 128)
_ONE_COLOUR = 12.0  # levels within which an opaque part is of one colour


@dataclass(frozen=True)
class Mask:
    """`hole` (H, W) bool, and sentences on how it was read if it is not plain black and white.

    `perhaps_image`: it could also be an image of two colours, or one with transparent parts.
    """

    hole: NDArray[np.bool_]
    notes: tuple[str, ...] = ()
    perhaps_image: bool = False


def read_mask(image: Image.Image, what: str) -> Mask:
    """The hole of a mask of any mode.

    If the alpha varies, it is the mask: transparent pixels are the hole (for a single colour painted on a transparent
    layer, the smaller of the two parts). Else the hole is what is above the middle of the range of values that occur.

    Args:
        image: as stored, without any conversion of colours.
        what: name of the mask in messages, such as "the mask".

    Raises:
        UserError: for an image of one value, one with values that are not finite, and one that is not a mask: with
            more than a few greys that are not a soft edge.
    """
    alpha = np.asarray(image.convert("RGBA").getchannel("A")) if image.has_transparency_data else None
    if alpha is not None and alpha.min() != alpha.max():
        return _of_alpha(image, alpha, what)
    values = _values(image, what)
    low, high = float(values.min()), float(values.max())
    if low == high:
        raise UserError(_of_one_value(what, low, _white(image)))
    _check_colours(image, what)
    _check_greys(values, low, high, what)
    eight_bits = _white(image) == 255 and high >= _FULL and low <= _SLACK
    threshold = 127.5 if eight_bits else (low + high) / 2
    hole = values > threshold
    if eight_bits:
        return Mask(hole)
    above = f"those above {threshold:g}, {int(hole.sum())} pixels, are the hole"
    note = f"{what} holds values from {low:g} to {high:g}: {above}"
    return Mask(hole, (note,), perhaps_image=low > 0)


def is_black_and_white(image: Image.Image) -> bool:
    """Whether an image of 8 bits a band has black and white pixels and no others, as a mask does."""
    if image.mode not in ("1", "L", "P", "RGB", "RGBA"):
        return False
    pixels = np.asarray(image.convert("RGB"))
    black, white = (pixels <= _SLACK).all(-1), (pixels >= _FULL).all(-1)
    return bool(black.any() and white.any() and (black | white).all())


def _of_alpha(image: Image.Image, alpha: NDArray[np.uint8], what: str) -> Mask:
    low, high = float(alpha.min()), float(alpha.max())
    _check_greys(alpha.astype(np.float32), low, high, what)
    erased = alpha < 128
    if not erased.any() or erased.all():
        erased = alpha < (low + high) / 2
    opaque = np.asarray(image.convert("RGBA"))[..., :3][~erased].astype(np.float32)
    painted = bool((np.ptp(opaque, axis=0) <= _ONE_COLOUR).all()) and bool(2 * erased.sum() > erased.size)
    hole = ~erased if painted else erased
    part = "painted on a transparent layer" if painted else "transparent"
    note = f"{what} has transparency, which is used as the mask: the {int(hole.sum())} {part} pixels are the hole"
    return Mask(hole, (note,), perhaps_image=not painted)


def _values(image: Image.Image, what: str) -> NDArray[np.floating[Any]]:
    """(H, W) brightness: the luminance of palettes and colours, else the values as stored."""
    if image.mode in WIDE or image.mode == "F":
        values: NDArray[np.floating[Any]] = np.asarray(image).astype(np.float64)
        if not np.isfinite(values).all():
            raise UserError(
                f"{what} holds {int((~np.isfinite(values)).sum())} values that are not finite: save it as PNG"
            )
        return values
    try:
        plain = image.getchannel(0) if image.mode in ("LA", "LAB") else image.convert("RGB").convert("L")
    except ValueError as error:
        raise UserError(f"{what} has the mode {image.mode} ({error}): save it as PNG") from None
    return np.asarray(plain).astype(np.float32)


def _white(image: Image.Image) -> float:
    return 65535.0 if image.mode in WIDE else 1.0 if image.mode == "F" else 255.0


def _of_one_value(what: str, value: float, white: float) -> str:
    colour = "black" if value == 0 else "white" if value >= 0.98 * white else f"of the value {value:g}"
    if colour == "white":
        return f"{what} is all hole: it is white everywhere; paint black what should be kept"
    return f"{what} has no hole: paint white what should be generated (it is {colour} everywhere)"


def _check_greys(values: NDArray[np.floating[Any]], low: float, high: float, what: str) -> None:
    """Raises UserError for greys that are neither few nor the soft edge between black and white.

    A soft mask equals its blurred black and white version, or is smooth wherever it is grey; pixels that fit neither
    are counted.
    """
    share = _shrunk(((values - low) / (high - low)).astype(np.float32))
    grey = (share > _GREY[0]) & (share < _GREY[1])
    levels = np.bincount((share[grey] * 64).astype(int), minlength=64)
    if int((levels > 1e-3 * share.size).sum()) <= _LEVELS // 2:
        return
    flat = (share < _FLAT) | (share > 1 - _FLAT)
    if flat.mean() >= _MOSTLY and (grey & _rough(share)).mean() <= _MOST_OFF:
        return
    if min((grey & off).mean() for off in _off_soft_edges(share)) <= _MOST_OFF:
        return
    raise UserError(
        f"{what} looks like an image, not like a mask: {grey.mean():.0%} of it is neither black nor white; {_ORDER}"
    )


def _off_soft_edges(share: NDArray[np.float32]) -> Iterator[NDArray[np.bool_]]:
    """For each radius the pixels that are far from the black and white version blurred by it."""
    sharp = Image.fromarray((share > 0.5).astype(np.uint8) * 255)
    for radius in _RADII:
        soft = np.asarray(sharp.filter(ImageFilter.GaussianBlur(radius))).astype(np.float32) / 255
        yield np.abs(share - soft) > _OFF


def _check_colours(image: Image.Image, what: str) -> None:
    """Raises UserError if the colours are not all mixtures of two colours, as those of a mask are."""
    if image.mode in ("1", "L", "LA", "F", "LAB", *WIDE):
        return
    step = max(1, max(image.size) // _SIDE)
    pixels = np.asarray(image.convert("RGB"))[::step, ::step].reshape(-1, 3).astype(np.float64)
    centred = pixels - pixels.mean(0)
    along = np.linalg.eigh(centred.T @ centred)[1][:, -1]
    away = np.linalg.norm(centred - np.outer(centred @ along, along), axis=1)
    if (away > _AWAY).mean() > _MOST_OFF:
        raise UserError(f"{what} looks like an image, not like a mask: it has more than two colours; {_ORDER}")


def _rough(share: NDArray[np.float32]) -> NDArray[np.bool_]:
    """Pixels that differ from the mean of their neighbours, as those of a wide soft edge do not."""
    image = Image.fromarray((share * 255).astype(np.uint8))
    mean = np.asarray(image.filter(ImageFilter.BoxBlur(1))).astype(np.float32) / 255
    return np.abs(share - mean) > _ROUGH


def _shrunk(share: NDArray[np.float32]) -> NDArray[np.float32]:
    """Every n-th pixel, so that checking a large mask takes no longer than a small one."""
    step = max(1, max(share.shape) // _SIDE)
    return share[::step, ::step]
