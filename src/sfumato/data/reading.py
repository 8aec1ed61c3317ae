"""From an image file to 8-bit RGB pixels: any mode Pillow opens, EXIF rotation, transparency over a background."""

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import IO

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageColor, ImageOps, UnidentifiedImageError

from sfumato.data.dataset import UnreadableImage
from sfumato.errors import UserError

SUFFIXES = frozenset(
    f".{ending}"
    for ending in (
        *("png", "jpg", "jpeg", "jpe", "jfif", "webp", "bmp", "dib", "tif", "tiff", "gif"),
        *("ppm", "pgm", "pbm", "pnm", "tga", "avif", "jp2", "ico"),
    )
)
"""File name endings taken for pictures, in lower case; a metadata file may name others."""

_ORIENTATION = 0x0112
_WIDE = ("I", "I;16", "I;16L", "I;16B", "I;16N")


@dataclass(frozen=True)
class Glance:
    """What the header tells: width and height as stored."""

    width: int
    height: int


def colour(name: str) -> tuple[int, int, int]:
    """RGB of a colour name or #rrggbb; UserError for anything else."""
    try:
        return ImageColor.getcolor(name, "RGB")  # type: ignore[return-value]
    except ValueError:
        raise UserError(f"background {name!r} is no colour: give white, black or #rrggbb") from None


@contextmanager
def _named(path: Path) -> Iterator[None]:
    """Turns whatever a decoder throws into UnreadableImage.

    A damaged file may raise nearly anything from inside Pillow's plug-ins (OSError, SyntaxError, struct.error,
    IndexError), so all but lack of memory counts as the file's fault.
    """
    try:
        yield
    except (UnreadableImage, MemoryError):
        raise
    except UnidentifiedImageError as error:
        raise UnreadableImage(str(path), "it is no picture of a known format") from error
    except Exception as error:
        reason = str(error).replace(str(path), path.name) or type(error).__name__
        raise UnreadableImage(str(path), reason) from error


def _open(path: Path, stream: IO[bytes]) -> Image.Image:
    image = Image.open(stream)
    limit = Image.MAX_IMAGE_PIXELS
    if limit is not None and image.width * image.height > limit:
        # Pillow itself only warns between one and two times its limit
        raise UnreadableImage(str(path), f"{image.width}x{image.height} pixels exceed Pillow's limit of {limit}")
    return image


def glance(path: Path) -> Glance:
    """Reads the header only; raises UnreadableImage for an empty, foreign or oversized file."""
    with _named(path), path.open("rb") as stream:
        if not stream.read(1):
            raise UnreadableImage(str(path), "the file is empty")
        stream.seek(0)
        with _open(path, stream) as image:
            return Glance(image.width, image.height)


def displayed_size(path: Path) -> tuple[int, int]:
    """(H, W) after EXIF rotation, from the header; raises UnreadableImage."""
    with _named(path), path.open("rb") as stream, _open(path, stream) as image:
        turned = False
        with suppress(Exception):  # as in `decode`
            turned = image.getexif().get(_ORIENTATION, 1) in (5, 6, 7, 8)
        return (image.width, image.height) if turned else (image.height, image.width)


def decode(path: Path, background: tuple[int, int, int], at_least: tuple[int, int] | None = None) -> Image.Image:
    """The file's first frame as RGB.

    With `at_least` (H, W) a JPEG larger than that by a power of two is decoded at reduced scale, never below it.
    Raises UnreadableImage.
    """
    with _named(path):
        with path.open("rb") as stream:
            data = stream.read()
        with _open(path, BytesIO(data)) as image:
            if at_least is not None and image.format == "JPEG":
                # a rotated picture's sides are swapped only later, so both get the longer one
                image.draft(None, (max(at_least), max(at_least)))
            image.load()
            with suppress(Exception):  # a damaged EXIF block does not make the pixels unreadable
                ImageOps.exif_transpose(image, in_place=True)
            return to_rgb(image, background)


def open_image(path: Path) -> Image.Image:
    """The file's first frame in its own mode, palette and transparency kept, EXIF rotation done.

    Raises UnreadableImage.
    """
    with _named(path):
        with path.open("rb") as stream:
            data = stream.read()
        with _open(path, BytesIO(data)) as image:
            image.load()
            with suppress(Exception):  # as in `decode`
                ImageOps.exif_transpose(image, in_place=True)
            return image.copy()


def to_rgb(image: Image.Image, background: tuple[int, int, int]) -> Image.Image:
    """8-bit RGB of a picture of any mode.

    16-bit grey (also in 32-bit integers) is divided by 257, so 65535 is white; float grey spans [0, 1], or [0, 255]
    if it exceeds 1; transparency of any kind is composed over the background.
    """
    if image.mode in _WIDE or image.mode == "F":
        values: NDArray[np.floating] = np.asarray(image).astype(np.float32)
        if image.mode == "F":
            values = np.nan_to_num(values)
            values = values * 255 if values.max(initial=0) <= 1 else values
        else:
            values = values / 257
        grey = np.clip(np.rint(values), 0, 255).astype(np.uint8)
        return Image.fromarray(grey).convert("RGB")
    if image.has_transparency_data:
        layer = image.convert("RGBA")
        below = Image.new("RGBA", layer.size, (*background, 255))
        return Image.alpha_composite(below, layer).convert("RGB")
    return image if image.mode == "RGB" else image.convert("RGB")
