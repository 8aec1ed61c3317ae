"""Ordinary files give the same pixels as ever: recorded hashes, and the plain sequence of Pillow's own calls."""

from hashlib import blake2b
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageOps

from sfumato.data.folder import FolderDataset
from sfumato.data.folder_config import FolderConfig

SIZES = ((64, 64), (63, 65), (97, 200), (201, 50), (300, 401), (17, 9))
"""(H, W), even and odd, smaller and larger than the frames."""
OPTIONS = ({}, {"resize": "pad"}, {"crop": "random"}, {"resize_filter": "bicubic", "size": (40, 24)})
GOLDEN = {
    "RGB": "b1a4cccbf89ce400",
    "RGBA": "d6f3ad6e912f5fad",
    "L": "1056322191f49e5e",
    "P": "569912553812586c",
    "LA": "3c6f7c56be3e27de",
    "1": "22f6507443a4d91d",
    "I;16": "aa44c8bd0c78149d",
}
"""Recorded at commit 16244f5, before images were read in another way, over all sizes and options."""


def pixels(height: int, width: int, mode: str) -> Image.Image:
    """An image with edges and noise."""
    rng = np.random.default_rng(height * 1000 + width)
    y, x = np.mgrid[:height, :width]
    base = np.stack([x * 255 // width, y * 255 // height, (x // 5 + y // 7) % 2 * 200, 255 - y * 200 // height], -1)
    noisy = (base + rng.integers(-20, 21, base.shape)).clip(0, 255).astype(np.uint8)
    if mode == "I;16":
        return Image.fromarray(noisy[..., 0].astype(np.uint16) * 257 + 3)
    image = Image.fromarray(noisy, "RGBA")
    if mode == "P":
        return image.convert("RGB").quantize(37, dither=Image.Dither.NONE)
    return image.convert("RGB").convert(mode) if mode in ("RGB", "L", "1") else image.convert(mode)


def hash_of(folder: Path, **options: object) -> bytes:
    data = FolderDataset(FolderConfig.model_validate({"path": folder, "size": 32, **options}))
    return b"".join(data.variant(i, 7).image.numpy().tobytes() for i in range(len(data)))


@pytest.mark.parametrize("mode", GOLDEN)
def test_recorded_pixels_of_png_files(tmp_path: Path, mode: str) -> None:
    for i, (height, width) in enumerate(SIZES):
        pixels(height, width, mode).save(tmp_path / f"{i}.png")
    seen = blake2b(digest_size=8)
    for options in OPTIONS:
        seen.update(hash_of(tmp_path, **options))
    assert seen.hexdigest() == GOLDEN[mode]


@pytest.mark.parametrize("orientation", [1, 3, 6, 8])
@pytest.mark.parametrize("mode", ["RGB", "L"])
def test_jpeg_files_go_through_the_same_calls(tmp_path: Path, mode: str, orientation: int) -> None:
    """Draft to at least twice the frame, rotation, RGB, one resize of the whole, the centre."""
    exif = Image.Exif()
    exif[0x0112] = orientation
    expected = []
    for i, (height, width) in enumerate(SIZES):
        stream = BytesIO()
        pixels(height, width, mode).save(stream, "JPEG", quality=93, exif=exif)
        (tmp_path / f"{i}.jpg").write_bytes(stream.getvalue())
        image: Image.Image = Image.open(stream)
        image.draft(None, (64, 64))
        image = ImageOps.exif_transpose(image).convert("RGB")
        scale = max(32 / image.width, 32 / image.height)
        w, h = max(32, round(image.width * scale)), max(32, round(image.height * scale))
        image = image.resize((w, h), Image.Resampling.LANCZOS, reducing_gap=3.0)
        left, top = (w - 32) // 2, (h - 32) // 2
        expected.append(np.asarray(image.crop((left, top, left + 32, top + 32))).transpose(2, 0, 1))
    data = FolderDataset(FolderConfig(path=tmp_path, size=32))
    for i in range(len(data)):
        assert np.array_equal(data[i].image.numpy(), expected[i]), SIZES[i]
