"""Tensors <-> pictures: PIL images, grids, PNG files that say how they were made."""

import io
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from PIL.PngImagePlugin import PngInfo
from torch import Tensor

from sfumato.checkpoint import replacing


def to_uint8(images: Tensor) -> Tensor:
    """(..., 3, H, W) in [-1, 1], clipped beyond, -> uint8, rounded to the nearest."""
    return ((images.detach().float().clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8)


def to_unit(images: Tensor) -> Tensor:
    """uint8 (..., 3, H, W) -> float32 in [-1, 1]."""
    return images.float() / 127.5 - 1


def to_pil(image: Tensor) -> Image.Image:
    """One image (3, H, W), uint8 or in [-1, 1]."""
    pixels = image if image.dtype == torch.uint8 else to_uint8(image)
    return Image.fromarray(np.ascontiguousarray(pixels.cpu().permute(1, 2, 0).numpy()))


def from_pil(image: Image.Image) -> Tensor:
    """(3, H, W) float32 in [-1, 1]."""
    return to_unit(torch.from_numpy(np.array(image.convert("RGB"))).permute(2, 0, 1))


def grid(images: Tensor, columns: int, gap: int = 2, background: int = 255) -> Tensor:
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
    picture = to_pil(image) if isinstance(image, Tensor) else image
    if scale > 1:
        picture = picture.resize((picture.width * scale, picture.height * scale), Image.Resampling.NEAREST)
    info = PngInfo()
    for name, value in (facts or {}).items():
        info.add_itxt(name, str(value))
    with replacing(path) as temporary:
        picture.save(temporary, format="PNG", pnginfo=info)


def png_bytes(image: Tensor, scale: int = 1) -> bytes:
    """A PNG in memory, for pages that carry their pictures."""
    picture = to_pil(image)
    if scale > 1:
        picture = picture.resize((picture.width * scale, picture.height * scale), Image.Resampling.NEAREST)
    buffer = io.BytesIO()
    picture.save(buffer, format="PNG", optimize=True)
    return buffer.getvalue()


def beside(*columns: Sequence[Tensor] | Tensor) -> Tensor:
    """Batches (N, 3, H, W) of the same size interleaved: (N · columns, 3, H, W), a row of a grid per sample."""
    return torch.stack(
        [torch.as_tensor(c) if isinstance(c, Tensor) else torch.stack(list(c)) for c in columns], 1
    ).flatten(0, 1)
