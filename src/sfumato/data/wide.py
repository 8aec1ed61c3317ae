"""Grey images with more than 8 bits: 16-bit and 32-bit integers, floats."""

from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

WIDE = ("I", "I;16", "I;16L", "I;16B", "I;16N")
WHITE = 65535.0
"""White in integers with more than 8 bits, also in those of 32 bits."""
_BRIGHT = 0.99  # the share of values that must be within 0 to 255


def white_of(image: Image.Image) -> float:
    """The value of white in a grey image of more than 8 bits."""
    return float_white(np.asarray(image)) if image.mode == "F" else WHITE


def float_white(values: NDArray[np.floating[Any]]) -> float:
    """The value of white in float pixels: 1, 255 or 65535.

    1 if at least half of the positive finite values are at most 1 (highlights, ringing and damaged pixels may exceed
    it); else 255 if 99 in 100 are at most 255.
    """
    positive = values[np.isfinite(values) & (values > 0)]
    if positive.size == 0 or float(np.median(positive)) <= 1:
        return 1.0
    return 255.0 if float(np.quantile(positive, _BRIGHT)) <= 255 else WHITE


def not_finite(image: Image.Image) -> int:
    """How many pixels of a float image are infinite or NaN."""
    return int((~np.isfinite(np.asarray(image))).sum()) if image.mode == "F" else 0


def to_grey(image: Image.Image) -> Image.Image:
    """8-bit grey of an image of the modes WIDE or F: values outside the range are clipped, NaN is black."""
    values: NDArray[np.floating[Any]] = np.asarray(image).astype(np.float32)
    if image.mode == "F":
        # order and precision as before: a float in [0, 255] is only rounded
        white = float_white(values)
        values = np.nan_to_num(values, posinf=white, neginf=0.0)
        values = values * 255 if white == 1 else values if white == 255 else values / 257
    else:
        values = values / 257
    return Image.fromarray(np.clip(np.rint(values), 0, 255).astype(np.uint8))
