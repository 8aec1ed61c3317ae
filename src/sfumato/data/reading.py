"""From an image file to 8-bit sRGB pixels: any mode Pillow opens, profiles, EXIF rotation, transparency."""

from collections.abc import Iterator
from contextlib import AbstractContextManager, suppress
from dataclasses import dataclass, field
from math import ceil
from typing import IO

from PIL import Image, ImageColor, ImageOps, TiffImagePlugin

from sfumato.counts import how_many
from sfumato.data.dataset import UnreadableImage
from sfumato.data.opening import identified, opened, stream_of
from sfumato.data.packed import ImageFile
from sfumato.data.parts import bands_of, reduced, rows_of
from sfumato.data.profiles import conversion_of, in_srgb, rgb_of
from sfumato.data.room import PIXELS
from sfumato.data.wide import WIDE, not_finite, to_grey
from sfumato.errors import UserError

MAX_PIXELS = 89_478_485
"""Pixels that are decoded at once by default: Pillow's limit."""
_LARGE = 2**25  # pixels from which on an image is not held as a whole
_PLAIN_BYTES = 3
"""Bytes a pixel of the images that `max_pixels` is meant for: RGB, in one copy."""
_WHOLE_BYTES = {"WEBP": 16, "JPEG2000": 19, "AVIF": 10}
"""Bytes a pixel that decoding as a whole takes at its peak, as measured; see `_bytes_of`."""
_FLOAT_BYTES, _OTHER_BYTES = 17, 5
_ONE_BYTE = ("1", "L", "P")
_TIMES = {"JPEG": 4.0, "raw": 2.0}
"""How many times `max_pixels` an image may have that is read reduced or in parts: what takes about two seconds."""
_COMPRESSED_TIMES = 1.25
_ORIENTATION, _BITS = 0x0112, 258
_TURNED = (5, 6, 7, 8)


@dataclass(frozen=True)
class ImageHeader:
    """The header of an image: width and height as stored.

    `remark`: a note for the user on the image, or ""; `generated`: whether sfumato wrote the image; `turned`: whether
    its sides are swapped where it is shown upright.
    """

    width: int
    height: int
    remark: str = ""
    generated: bool = False
    turned: bool = field(default=False, repr=False)

    @property
    def upright(self) -> tuple[int, int]:
        """(H, W) as shown."""
        return (self.width, self.height) if self.turned else (self.height, self.width)


@dataclass(frozen=True)
class Decoded:
    """An RGB image, perhaps at reduced scale, and the size (H, W) of the original, after rotation."""

    image: Image.Image
    size: tuple[int, int]


def colour(name: str) -> tuple[int, int, int]:
    """RGB of a colour name or #rrggbb; UserError for anything else."""
    try:
        return ImageColor.getcolor(name, "RGB")  # type: ignore[return-value]
    except ValueError:
        raise UserError(f"background {name!r} is not a colour: give white, black or #rrggbb") from None


def read_header(path: ImageFile, max_pixels: int = MAX_PIXELS) -> ImageHeader:
    """Reads only the header, for float images also the pixels.

    Raises UnreadableImage for a file that is empty, foreign, or too large to be read at reduced scale.
    """
    with stream_of(path) as stream, identified(stream) as image:
        _check_size(image, stream, path, max_pixels, reducing=True)
        width, height = image.size
        made_here = image.format == "PNG" and "sfumato" in image.info
        return ImageHeader(width, height, _remark(image), made_here, _orientation(image) in _TURNED)


def _remark(image: Image.Image) -> str:
    if image.mode == "F":
        with _decoding(image):
            count = not_finite(image)
    else:
        count = 0
    if count:
        return f"{how_many(count, 'pixel is', 'pixels are')} not finite: infinite ones are clipped, NaN is black"
    note = conversion_of(image).note
    return note if "converted" in note or not note else f"{note}: it is ignored"


def displayed_size(path: ImageFile) -> tuple[int, int]:
    """(H, W) after EXIF rotation, from the header; raises UnreadableImage."""
    with opened(path) as image:
        return _upright(image)


def _upright(image: Image.Image) -> tuple[int, int]:
    height, width = image.height, image.width
    return (width, height) if _orientation(image) in _TURNED else (height, width)


def _orientation(image: Image.Image) -> int:
    if image.format == "PNG" and "exif" not in image.info and image.width * image.height > _LARGE:
        return 1  # Pillow would decode all pixels to search for a block after them
    with suppress(Exception):  # a damaged EXIF block does not make the pixels unreadable
        return int(image.getexif().get(_ORIENTATION, 1))
    return 1


def decode(path: ImageFile, background: tuple[int, int, int], at_least: tuple[int, int] | None = None) -> Image.Image:
    """The file's first frame as RGB; otherwise as `decode_reduced`, whose image this is."""
    return decode_reduced(path, background, at_least).image


def decode_reduced(
    path: ImageFile,
    background: tuple[int, int, int],
    at_least: tuple[int, int] | None = None,
    max_pixels: int = MAX_PIXELS,
) -> Decoded:
    """The file's first frame as RGB.

    With `at_least` (H, W) a JPEG larger than that by a power of two is decoded at reduced scale, never below it, and
    any image of more than 2^25 pixels is shrunk by a whole number while it is decoded. Raises UnreadableImage, also
    for more than `max_pixels` if that cannot be avoided so.
    """
    with stream_of(path) as stream, identified(stream) as image:
        _check_size(image, stream, path, max_pixels, reducing=at_least is not None)
        stored = image.size
        if at_least is not None and image.format == "JPEG":
            # a rotated image's sides are swapped only later, so both get the longer one
            image.draft(None, (max(at_least), max(at_least)))
        with _decoding(image):
            small, turned = _small(image, stream, background, at_least)
            _release(image, small)
        return Decoded(small, stored if turned else (stored[1], stored[0]))


def _release(image: Image.Image, result: Image.Image) -> None:
    """Frees what the decoder of `image` holds now, not when its reference cycles are found: two frames for WebP."""
    if result is not image:
        image.close()
    elif hasattr(image, "_decoder"):
        image._decoder = None


def _small(
    image: Image.Image, stream: IO[bytes], background: tuple[int, int, int], at_least: tuple[int, int] | None
) -> tuple[Image.Image, bool]:
    """The pixels as RGB, upright, and whether its sides were swapped for that."""
    if at_least is not None and image.width * image.height > _LARGE and image.mode != "F":
        turned = _orientation(image) in _TURNED
        return _in_parts(image, stream, background, max(at_least)), turned
    image.load()
    turned = _orientation(image) in _TURNED
    _turn(image)
    return to_rgb(image, background), turned


def _turn(image: Image.Image) -> None:
    with suppress(Exception):  # as in `_upright`
        ImageOps.exif_transpose(image, in_place=True)


def _in_parts(image: Image.Image, stream: IO[bytes], background: tuple[int, int, int], least: int) -> Image.Image:
    """The image as RGB, shrunk so that its shorter side is still at least `least`, one band of rows at a time."""
    size, by = (image.height, image.width), max(1, min(image.size) // least)
    orientation, mode, profile = _orientation(image), image.mode, image.info.get("icc_profile")
    # converted when it is small, where that is the same: means of colours weighted by their alpha are what is composed
    after = mode in ("RGBA", "LA") if image.has_transparency_data else mode in ("RGB", "L")
    bands = bands_of(image, stream, by)
    if bands is None:
        image.load()
        bands = rows_of(image)

    def convert(band: Image.Image) -> Image.Image:
        if after:
            return band
        band.info.pop("icc_profile", None)
        if profile:
            band.info["icc_profile"] = profile
        return to_rgb(band, background)

    small = reduced(bands, mode if after else "RGB", size, by, convert)
    exif = small.getexif()
    exif[_ORIENTATION] = orientation
    small.info = {"exif": exif.tobytes()}
    _turn(small)
    small.info = {"icc_profile": profile} if profile and after else {}
    return to_rgb(small, background)


def _check_size(image: Image.Image, stream: IO[bytes], path: ImageFile, max_pixels: int, reducing: bool) -> None:
    """Raises UnreadableImage for more pixels than `max_pixels`, or `_times` as many where they are read in parts."""
    pixels, size = image.width * image.height, f"{image.width}x{image.height}"
    times, most = _times(image), int(max_pixels * _PLAIN_BYTES / _bytes_of(image))
    what = f"{size} pixels exceed data.max_pixels = {max_pixels}"
    if not reducing:
        if pixels > max_pixels:
            raise UnreadableImage(str(path), f"{size} pixels are more than {max_pixels}: shrink it")
    elif pixels > times * max_pixels:
        slow = f", and {image.format} images of this size take over two seconds each"
        what = f"{what} more than {times:g} times{slow if pixels > times * MAX_PIXELS else ''}"
        way = f"raise it to {ceil(pixels / times)} to read the image, slowly, or shrink the image"
        raise UnreadableImage(str(path), f"{what}: {way}")
    elif pixels > most and _is_whole(image, stream):
        if pixels > max_pixels:
            what = f"{what}, and it cannot be read in parts"
        else:
            kind = "float" if image.mode == "F" else image.format
            what = (
                f"{size} pixels exceed the {most} that data.max_pixels = {max_pixels} allows {kind} images, which "
                f"cannot be read in parts and take {_bytes_of(image):g} bytes a pixel"
            )
        raise UnreadableImage(str(path), f"{what}: raise it, or save the image as PNG or plain JPEG")


def _times(image: Image.Image) -> float:
    """How many times `max_pixels` the image may have if it is read in parts: by how quickly it is decoded."""
    tiles = getattr(image, "tile", [])
    return _TIMES.get(image.format or "") or _TIMES.get(tiles[0][0] if tiles else "", _COMPRESSED_TIMES)


def _bytes_of(image: Image.Image) -> float:
    """Bytes a pixel at the peak of decoding the image as a whole."""
    if image.mode == "F":
        return _FLOAT_BYTES
    if image.format == "JPEG":
        return _coefficients(image) if image.info.get("progressive") else _PLAIN_BYTES
    decoded = 1 if image.mode in _ONE_BYTE and image.width * image.height > _LARGE else 4
    if isinstance(image, TiffImagePlugin.TiffImageFile):
        bits = image.tag_v2.get(_BITS, (1,))
        return 2 * sum(bits) / 8 + decoded  # a strip as it is in the file and decompressed
    return _WHOLE_BYTES.get(image.format or "", _OTHER_BYTES if decoded > 1 else decoded)


def _coefficients(image: Image.Image) -> float:
    """Bytes a pixel of the coefficients of a JPEG, which are held until its last scan: two each."""
    factors = [(layer[1], layer[2]) for layer in getattr(image, "layer", [])] or [(1, 1)] * 3
    whole = max(h for h, _ in factors) * max(v for _, v in factors)
    return 2 * sum(h * v for h, v in factors) / max(whole, 1)


def _is_whole(image: Image.Image, stream: IO[bytes]) -> bool:
    """Whether the image can only be decoded as a whole, at several bytes a pixel."""
    if image.mode == "F" or image.format in _WHOLE_BYTES:
        return True
    if image.format == "JPEG":
        return bool(image.info.get("progressive"))
    return bands_of(image, stream) is None


def _decoding(image: Image.Image) -> AbstractContextManager[None]:
    """Bounds the sum of what threads decode at a time."""
    return PIXELS.holding(ceil(image.width * image.height * _bytes_of(image)))


@dataclass(frozen=True)
class OpenedImage:
    """An image in its own mode with sRGB colours, and sentences on what was done to it."""

    image: Image.Image
    notes: tuple[str, ...] = ()


def open_image(path: ImageFile, max_pixels: int = MAX_PIXELS) -> OpenedImage:
    """The file's first frame in its own mode, palette and transparency kept, EXIF rotation applied, profile converted.

    CMYK with a profile and Lab become RGB. Raises UnreadableImage.
    """
    image = open_ids(path, max_pixels)
    count = not_finite(image)
    bad = (f"{count} of its pixels are not finite: infinite ones are clipped, NaN is black",) if count else ()
    image, note = in_srgb(image)
    return OpenedImage(image, (note, *bad) if note else bad)


def open_ids(path: ImageFile, max_pixels: int = MAX_PIXELS) -> Image.Image:
    """As `open_image`, but values stay as they are stored: for maps and masks. Raises UnreadableImage."""
    with stream_of(path) as stream, identified(stream) as image:
        _check_size(image, stream, path, max_pixels, reducing=False)
        image.load()
        _turn(image)
        return image.copy()


def to_rgb(image: Image.Image, background: tuple[int, int, int]) -> Image.Image:
    """8-bit sRGB of an image of any mode.

    A colour profile is converted to sRGB. 16-bit grey (also in 32-bit integers) is divided by 257, so 65535 is white;
    float grey spans [0, 1], [0, 255] or [0, 65535] (see `wide.float_white`); transparency of any kind is composed over
    the background.
    """
    if image.mode in WIDE or image.mode == "F":
        grey = to_grey(image)
        grey.info.update({name: value for name, value in image.info.items() if name == "icc_profile"})
        return rgb_of(grey)
    layer = rgb_of(image)
    if layer.mode == "RGB":
        return layer
    whole = Image.new("RGB", layer.size)
    for top, band in _strips(layer):
        below = Image.new("RGBA", band.size, (*background, 255))
        whole.paste(Image.alpha_composite(below, band).convert("RGB"), (0, top))
    return whole


def _strips(image: Image.Image) -> Iterator[tuple[int, Image.Image]]:
    """Bands of rows, so that intermediate images stay small."""
    top = 0
    for band in rows_of(image):
        yield top, band
        top += band.height
