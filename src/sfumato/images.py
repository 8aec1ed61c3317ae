"""Tensors <-> images: PIL images, grids, PNG files with metadata on how they were made."""

import io
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from PIL.PngImagePlugin import PngInfo
from torch import Tensor

from sfumato.checkpoint import replacing, write_first_free

PNG_MODES = ("1", "L", "LA", "P", "RGB", "RGBA", "I", "I;16")
SHEET_SIDE = 256
"""Longest side of an image in a grid of images of different sizes."""


def to_uint8(images: Tensor) -> Tensor:
    """(..., 3, H, W), clipped to [-1, 1] -> uint8, rounded to the nearest."""
    return ((images.detach().float().clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8)


def to_unit(images: Tensor) -> Tensor:
    """uint8 (..., 3, H, W) -> float32 in [-1, 1]."""
    return images.float() / 127.5 - 1


def to_pil(image: Tensor) -> Image.Image:
    """One image (3, H, W), or grey (1, H, W); uint8 or in [-1, 1]."""
    pixels = image if image.dtype == torch.uint8 else to_uint8(image)
    pixels = pixels[0] if pixels.shape[0] == 1 else pixels.permute(1, 2, 0)
    return Image.fromarray(np.ascontiguousarray(pixels.cpu().numpy()))


def from_pil(image: Image.Image) -> Tensor:
    """(3, H, W) float32 in [-1, 1]."""
    return to_unit(torch.from_numpy(np.array(image.convert("RGB"))).permute(2, 0, 1))


def image_grid(images: Tensor, columns: int, gap: int = 2, background: int = 255) -> Tensor:
    """Images (N, 3, H, W), uint8 or in [-1, 1], in rows of `columns` with a gap: one uint8 image (3, H', W')."""
    pixels = images if images.dtype == torch.uint8 else to_uint8(images)
    N, C, H, W = pixels.shape
    columns = min(columns, N)
    rows = -(-N // columns)
    sheet = torch.full((C, rows * (H + gap) - gap, columns * (W + gap) - gap), background, dtype=torch.uint8)
    for i in range(N):
        top, left = i // columns * (H + gap), i % columns * (W + gap)
        sheet[:, top : top + H, left : left + W] = pixels[i]
    return sheet


def save_png(
    path: Path, image: Tensor | Image.Image, facts: Mapping[str, object] | None = None, scale: int = 1
) -> None:
    """Writes a PNG atomically, with `facts` as text chunks; `scale` enlarges by whole pixels."""
    pil_image = to_pil(image) if isinstance(image, Tensor) else image
    if scale > 1:
        pil_image = pil_image.resize((pil_image.width * scale, pil_image.height * scale), Image.Resampling.NEAREST)
    with replacing(path) as temporary:
        pil_image.save(temporary, format="PNG", pnginfo=_text_chunks(facts))


def save_first_free(
    paths: Iterable[Path], image: Tensor | Image.Image, facts: Mapping[str, object] | None = None
) -> Path:
    """As `save_png`, under the first unused one of `paths`, all in one folder; returns that path.

    An image whose mode PNG does not have becomes a TIFF without facts: give its paths that suffix.
    """
    pil_image = to_pil(image) if isinstance(image, Tensor) else image

    def write(temporary: Path) -> None:
        if pil_image.mode in PNG_MODES:
            pil_image.save(temporary, format="PNG", pnginfo=_text_chunks(facts))
        else:
            pil_image.save(temporary, format="TIFF")

    return write_first_free(paths, write)


def _text_chunks(facts: Mapping[str, object] | None) -> PngInfo:
    info = PngInfo()
    for name, value in (facts or {}).items():
        info.add_itxt(name, str(value))
    return info


def png_file(image: Image.Image, facts: Mapping[str, object] | None = None) -> bytes:
    """The file of an image in its mode, one of PNG_MODES, with `facts` as text chunks."""
    buffer = io.BytesIO()
    image.save(buffer, format="PNG", pnginfo=_text_chunks(facts))
    return buffer.getvalue()


def png_bytes(image: Tensor, scale: int = 1) -> bytes:
    """A PNG in memory, for pages with embedded images."""
    pil_image = to_pil(image)
    if scale > 1:
        pil_image = pil_image.resize((pil_image.width * scale, pil_image.height * scale), Image.Resampling.NEAREST)
    buffer = io.BytesIO()
    pil_image.save(buffer, format="PNG", optimize=True)
    return buffer.getvalue()


def interleave(*columns: Tensor) -> Tensor:
    """Batches (N, 3, H, W) of one size interleaved: (N · columns, 3, H, W), a row of a grid per sample."""
    return torch.stack(columns, 1).flatten(0, 1)


def in_one_frame(images: Sequence[Tensor]) -> Tensor:
    """Images (3, H, W) in [-1, 1] of any sizes as (N, 3, H', W'), in the middle of the smallest frame for all, white
    around them."""
    H, W = (max(image.shape[axis] for image in images) for axis in (1, 2))
    framed = torch.ones(len(images), images[0].shape[0], H, W)
    for image, frame in zip(images, framed, strict=True):
        h, w = image.shape[1:]
        top, left = (H - h) // 2, (W - w) // 2
        frame[:, top : top + h, left : left + w] = image
    return framed


def thumbnails(images: Sequence[Tensor]) -> Tensor:
    """Images (3, H, W) of any sizes as uint8 cells (N, 3, H, W) of one size: at most SHEET_SIDE long, with a white
    border."""
    small = []
    for image in images:
        pil_image = to_pil(image)
        pil_image.thumbnail((SHEET_SIDE, SHEET_SIDE), Image.Resampling.LANCZOS)
        small.append(to_uint8(from_pil(pil_image)))
    H, W = (max(image.shape[axis] for image in small) for axis in (-2, -1))
    made = torch.full((len(small), 3, H, W), 255, dtype=torch.uint8)
    for cell, image in zip(made, small, strict=True):
        top, left = (H - image.shape[-2]) // 2, (W - image.shape[-1]) // 2
        cell[:, top : top + image.shape[-2], left : left + image.shape[-1]] = image
    return made


def pad_to_multiple(images: Tensor, factor: int) -> Tensor:
    """(B, C, H, W) padded at the bottom and the right to multiples of `factor` by reflection, for any size.

    At least to 2 · factor: norms need more than one position.
    """
    for axis in (-2, -1):
        length = images.shape[axis]
        images = images.index_select(axis, _mirrored(length, max(2 * factor, -(-length // factor) * factor)))
    return images


def _mirrored(length: int, count: int) -> Tensor:
    """`count` indices from 0 to length - 1 and back, repeatedly."""
    period = max(1, 2 * (length - 1))
    i = torch.arange(count) % period
    return torch.where(i < length, i, period - i)
