"""Reading class ids from the pixels of an image, for label maps in training and sampling."""

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from sfumato.data.wide import WIDE
from sfumato.errors import UserError

COLOURED = ("RGB", "RGBA", "RGBX", "CMYK", "YCbCr")
"""Modes whose pixels are colours, to be looked up."""


def ids_of(image: Image.Image, what: str) -> NDArray[np.int64] | None:
    """(H, W) ids: grey values of any depth, whole numbers in floats, indices of a palette; None for colours.

    Raises UserError for floats that are not whole numbers and for other modes; `what` names the map.
    """
    if image.mode in COLOURED:
        return None
    if image.mode in ("LA", "PA"):
        return np.asarray(image)[..., 0].astype(np.int64)
    if image.mode in ("1", "L", "P", *WIDE):
        return np.asarray(image).astype(np.int64)
    if image.mode != "F":
        raise UserError(f"{what} has the mode {image.mode}: save it as a PNG of ids (grey or palette) or colours")
    values = np.asarray(image)
    whole = np.isfinite(values) & (values == np.rint(values)) & (np.abs(values) < 2**31)
    if not whole.all():
        row, column = (int(v) for v in np.argwhere(~whole)[0])
        raise UserError(
            f"{what} holds {float(values[row, column]):g} at row {row}, column {column}, which is not a class id: "
            "save it as a PNG of whole numbers"
        )
    return values.astype(np.int64)
