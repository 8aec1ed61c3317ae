"""Compositing of generated pixels into the user's image, in its mode: outside the mask it is bitwise unchanged."""

from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from sfumato.data.wide import WIDE, white_of
from sfumato.errors import UserError
from sfumato.images import to_pil

Array = NDArray[Any]
PLAIN = {
    "L": "L",
    "LA": "L",
    "RGB": "RGB",
    "RGBA": "RGB",
    "RGBX": "RGB",
    "CMYK": "CMYK",
    "YCbCr": "YCbCr",
    "HSV": "HSV",
}
"""Modes with 8 bits a band, and the mode of the bands that are blended; others (alpha) are unchanged."""


def composite(original: Image.Image, generated: Tensor, hole: Tensor, feather: int) -> Image.Image:
    """The original with generated pixels in the hole.

    Args:
        original: of any mode; size, mode, palette and alpha are preserved.
        generated: (3, H, W) in [-1, 1].
        hole: (H, W) bool, the pixels to replace.
        feather: pixels over which the two are blended, counted from the hole's edge inwards.

    Raises:
        UserError: for a mode that cannot be modified.
    """
    share = feathered(hole, feather).numpy()
    rgb = to_pil(generated)
    if original.mode in ("P", "PA"):
        return _into_palette(original, rgb, share)
    if original.mode == "1":
        grey = _blend(np.asarray(original.convert("L")), np.asarray(rgb.convert("L")), share)
        return _rebuilt(original, np.packbits(grey >= 128, axis=1))
    if original.mode in WIDE or original.mode == "F":
        pixels = np.asarray(original)
        fresh = np.asarray(rgb.convert("L"), np.float64) / 255 * white_of(original)
        return _rebuilt(original, _blend(pixels, fresh, share))
    if original.mode not in PLAIN:
        raise UserError(f"an image of the mode {original.mode} cannot be filled in: save it as RGB or RGBA")
    pixels = np.asarray(original).copy()
    bands = pixels if pixels.ndim == 3 else pixels[..., None]
    fresh = np.asarray(rgb.convert(PLAIN[original.mode]))
    fresh = fresh if fresh.ndim == 3 else fresh[..., None]
    bands[..., : fresh.shape[2]] = _blend(bands[..., : fresh.shape[2]], fresh, share[..., None])
    return _rebuilt(original, pixels)


def feathered(hole: Tensor, feather: int) -> Tensor:
    """(H, W) float: the share of the generated image, 0 outside the hole, rising from its edge to 1 inside."""
    if feather <= 0:
        return hole.float()
    inside = hole.float()[None, None]
    share = torch.zeros_like(inside)
    for _ in range(feather + 1):
        share += inside / (feather + 1)
        inside = -F.max_pool2d(-inside, 3, stride=1, padding=1)  # the hole continues beyond the image's border
    return torch.where(hole, share[0, 0].clamp(max=1), 0.0)


def largest_change(original: Image.Image, result: Image.Image, hole: Tensor) -> float:
    """The largest change of a band of a pixel outside the hole (H, W); palette images are compared by index."""
    before, after = (np.asarray(image).astype(np.float64) for image in (original, result))
    change = np.abs(after - before)
    change = change if change.ndim == 2 else change.max(-1)
    outside = change[~hole.numpy()]
    return float(outside.max(initial=0))


def _blend(pixels: Array, fresh: Array, share: Array) -> Array:
    """Unchanged pixels where the share is 0; in the pixels' type."""
    if np.issubdtype(pixels.dtype, np.floating):  # a pixel that is not finite is replaced, not blended
        share = np.where((share > 0) & ~np.isfinite(pixels), 1.0, share)
        old = np.where(np.isfinite(pixels), pixels, 0)
    else:
        old = pixels
    mixed = old + share * (fresh.astype(np.float64) - old)
    mixed = mixed if np.issubdtype(pixels.dtype, np.floating) else np.rint(mixed)
    return np.where(share > 0, mixed, pixels).astype(pixels.dtype)


def _into_palette(original: Image.Image, rgb: Image.Image, share: Array) -> Image.Image:
    """The nearest opaque colours of the image's palette."""
    pixels = np.asarray(original).copy()
    indices = pixels if pixels.ndim == 2 else pixels[..., 0]
    colours = np.array(original.getpalette("RGB"), np.float64).reshape(-1, 3)
    targets = _blend(np.asarray(original.convert("RGB")).astype(np.float64), np.asarray(rgb), share[..., None])
    chosen = [i for i in range(len(colours)) if i not in _transparent(original)]
    inside = share > 0
    nearest = _nearest(targets[inside], colours[chosen])
    indices[inside] = np.array(chosen, pixels.dtype)[nearest]
    return _rebuilt(original, pixels)


def _transparent(image: Image.Image) -> set[int]:
    transparency = image.info.get("transparency")
    if isinstance(transparency, bytes):
        return {i for i, alpha in enumerate(transparency) if alpha < 128}
    return set() if transparency is None else {int(transparency)}


def _nearest(points: Array, colours: Array) -> Array:
    parts = [
        np.square(part[:, None] - colours[None]).sum(-1).argmin(1)
        for part in np.array_split(points, 1 + len(points) // 4096)
    ]
    return np.concatenate(parts)


def _rebuilt(original: Image.Image, pixels: Array) -> Image.Image:
    """A copy of the original, with its palette and metadata, and the given pixels."""
    copy = original.copy()
    copy.frombytes(np.ascontiguousarray(pixels).tobytes())
    return copy
