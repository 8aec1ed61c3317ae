"""Large images a band of rows at a time, so that no image is in memory as a whole: PNG, TIFF and plain pixels.

Each reader passes the bands' own data to Pillow's decoders.
"""

import struct
import zlib
from collections.abc import Callable, Iterator, Sequence
from io import BytesIO
from typing import IO, Any

import numpy as np
from PIL import Image, TiffImagePlugin

Bands = Iterator[Image.Image]
_BAND = 2**22  # bytes of a band, about
_BLOCK = 2**16 - 1  # bytes of the largest block of deflate that is not compressed
_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_PNG_CHANNELS = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}
_PLAIN = {"RGB": 3, "BGR": 3, "BGRX": 4, "RGBA": 4, "BGRA": 4}
"""Raw modes whose rows can be cut out of a file, and their bytes a pixel."""
_STRIP_TAGS = (256, 258, 259, 262, 266, 277, 284, 292, 293, 317, 320, 338, 339, 347, 529, 530, 531, 532)
"""TIFF tags that define how the bytes of a strip become pixels."""
LENGTH, OFFSETS, ROWS, COUNTS, TILES = 257, 273, 278, 279, 322


def bands_of(image: Image.Image, stream: IO[bytes], multiple: int = 1) -> Bands | None:
    """The image's rows as a sequence of images, in its mode, or None for a format that has to be decoded as a whole.

    `image` is open but not decoded, `stream` its file, which must stay open until the bands are read. Bands have a
    multiple of `multiple` rows if the format allows the choice. Raises what Pillow or zlib raise for a damaged file.
    """
    place = stream.tell()  # Pillow continues reading there
    found = _png(image, stream, multiple) or _tiff(image, stream) or _raw(image, stream, multiple)
    stream.seek(place)
    return found


def _rows(stride: int, multiple: int) -> int:
    """Rows of a band whose rows take `stride` bytes each."""
    return max(1, _BAND // stride // multiple) * multiple


def rows_of(image: Image.Image) -> Bands:
    """A decoded image as bands of rows."""
    rows = max(1, _BAND // (4 * image.width))
    for top in range(0, image.height, rows):
        yield image.crop((0, top, image.width, min(image.height, top + rows)))


def reduced(
    bands: Bands, mode: str, size: tuple[int, int], by: int, convert: Callable[[Image.Image], Image.Image]
) -> Image.Image:
    """The image (H, W) = `size` that the bands make up, shrunk by a whole number: means of by x by pixels.

    Bands are converted by `convert`, which returns images of `mode`, before they are shrunk.
    """
    height, width = size
    whole = Image.new(mode, (-(-width // by), -(-height // by)))
    done, waiting = 0, None
    for band in bands:
        fresh = convert(band)
        waiting = fresh if waiting is None else _below(waiting, fresh)
        last = done * by + waiting.height >= height
        rows = waiting.height if last else waiting.height // by * by
        if rows == 0:
            continue
        part = waiting if rows == waiting.height else waiting.crop((0, 0, width, rows))
        whole.paste(part.reduce(by) if by > 1 else part, (0, done))
        done += -(-rows // by)
        waiting = None if rows == waiting.height else waiting.crop((0, rows, width, waiting.height))
    if done < whole.height:
        raise OSError(f"the file ends after {done * by} of {height} rows")
    return whole


def _below(upper: Image.Image, lower: Image.Image) -> Image.Image:
    both = Image.new(upper.mode, (upper.width, upper.height + lower.height))
    both.paste(upper, (0, 0))
    both.paste(lower, (0, upper.height))
    return both


def _png(image: Image.Image, stream: IO[bytes], multiple: int) -> Bands | None:
    if image.format != "PNG":
        return None
    stream.seek(len(_SIGNATURE) + 8)
    width, height, depth, colour, _, _, interlaced = struct.unpack(">IIBBBBB", stream.read(13))
    if interlaced or (width, height) != image.size or not (depth == 8 or (depth in (1, 16) and colour == 0)):
        return None
    return _png_bands(image, stream, 1 + -(-width * depth * _PNG_CHANNELS[colour] // 8), multiple)


def _png_bands(image: Image.Image, stream: IO[bytes], stride: int, multiple: int) -> Bands:
    """Rows are filtered by the rows above: the first of each band is decoded with the last of the band before."""
    width, left, above = image.width, image.height, b""
    rows = _rows(max(stride, 4 * width), multiple)  # a bit takes four bytes once converted
    inflated, mode = _Inflated(stream), _png_mode(image)
    while left:
        n = min(rows, left)
        data = inflated.read(n * stride)
        if above:
            pair = _unfiltered(mode, (width, 2), [above, data[:stride]])
            band = _unfiltered(mode, (width, n), [_unfiltered_row(pair), memoryview(data)[stride:]])
        else:
            band = _unfiltered(mode, (width, n), [data])
        above = _unfiltered_row(band)
        if image.palette is not None:
            band.putpalette(image.palette)
        if "transparency" in image.info:
            band.info["transparency"] = image.info["transparency"]
        yield band
        left -= n


def _png_mode(image: Image.Image) -> tuple[str, str]:
    """The image's mode, and that of its data in the file."""
    args = image.tile[0][3]  # type: ignore[attr-defined]  # of every file that is not loaded
    return image.mode, args if isinstance(args, str) else args[0]


def _unfiltered(mode: tuple[str, str], size: tuple[int, int], rows: Sequence[bytes | memoryview]) -> Image.Image:
    """Rows of a PNG, each after the byte that names its filter, as an image. Raises ValueError for damaged ones.

    Pillow's decoder takes a zlib stream: the rows are its blocks that are not compressed, at a quarter of the time that
    zlib takes to store them. It ends with the last row, before the checksum.
    """
    parts: list[bytes | memoryview] = [b"\x78\x01"]
    for data in rows:
        for start in range(0, len(data), _BLOCK):
            piece = memoryview(data)[start : start + _BLOCK]
            parts += [struct.pack("<BHH", 0, len(piece), len(piece) ^ 0xFFFF), piece]
    return Image.frombytes(mode[0], size, b"".join(parts), "zip", mode[1], 0)


def _unfiltered_row(band: Image.Image) -> bytes:
    """The last row as in a PNG, with filter 0: as it is."""
    last = band.crop((0, band.height - 1, band.width, band.height))
    return b"\0" + (np.asarray(last).astype(">u2").tobytes() if band.mode == "I;16" else last.tobytes())


class _Inflated:
    """The pixels' data of a PNG. No more is inflated than is asked for, however small the file."""

    def __init__(self, stream: IO[bytes]) -> None:
        stream.seek(len(_SIGNATURE))
        self._stream, self._inflate = stream, zlib.decompressobj()
        self._compressed = self._pieces()

    def read(self, count: int) -> bytes:
        """The next `count` bytes. Raises OSError if the file ends before them."""
        data = bytearray()
        while len(data) < count:
            source = self._inflate.unconsumed_tail or next(self._compressed, b"")
            piece = self._inflate.decompress(source, count - len(data))
            if not piece and not source:
                raise OSError("the PNG file ends before its last row")
            data += piece
        return bytes(data)

    def _pieces(self) -> Iterator[bytes]:
        """The compressed data of all IDAT chunks."""
        while len(head := self._stream.read(8)) == 8:
            length, kind = struct.unpack(">I4s", head)
            if kind != b"IDAT":
                self._stream.seek(length + 4, 1)
                continue
            checksum = zlib.crc32(kind)
            while length:
                piece = self._stream.read(min(length, 2**14))
                if not piece:
                    return
                length -= len(piece)
                checksum = zlib.crc32(piece, checksum)
                yield piece
            if self._stream.read(4) != struct.pack(">I", checksum):
                raise OSError("broken PNG file (bad checksum of IDAT)")


def _tiff(image: Image.Image, stream: IO[bytes]) -> Bands | None:
    if not isinstance(image, TiffImagePlugin.TiffImageFile):
        return None
    tags = image.tag_v2
    rows = tags.get(ROWS, image.height)
    if tags.get(284, 1) != 1 or TILES in tags or OFFSETS not in tags or COUNTS not in tags or rows >= image.height:
        return None
    return _strips(tags, image.size, rows, stream)


def _strips(tags: Any, size: tuple[int, int], rows: int, stream: IO[bytes]) -> Bands:
    width, height = size
    offsets, counts = tags[OFFSETS], tags[COUNTS]
    together = max(1, _BAND // (4 * width * rows))
    for i in range(0, len(offsets), together):
        parts = list(zip(offsets[i : i + together], counts[i : i + together], strict=True))
        n = min(rows * len(parts), height - i * rows)
        directory = TiffImagePlugin.ImageFileDirectory_v2(prefix=tags.prefix)
        for tag in _STRIP_TAGS:
            if tag in tags:
                directory.tagtype[tag] = tags.tagtype[tag]
                directory[tag] = tags[tag]
        directory[LENGTH], directory[ROWS] = n, min(rows, n)
        directory.tagtype[OFFSETS] = directory.tagtype[COUNTS] = 4  # long: Pillow adds where the data begin
        lengths = [count for _, count in parts]
        directory[OFFSETS] = tuple(sum(lengths[:k]) for k in range(len(parts)))
        directory[COUNTS] = tuple(lengths)
        file = BytesIO()
        directory.save(file)
        for offset, count in parts:
            stream.seek(offset)
            file.write(stream.read(count))
        file.seek(0)
        with Image.open(file) as band:
            band.load()
            if band.size != (width, n):
                raise OSError(f"strip {i} of the TIFF file is damaged")
            yield band


def _raw(image: Image.Image, stream: IO[bytes], multiple: int) -> Bands | None:
    """Uncompressed pixels in one piece, as in BMP, PPM and TGA."""
    tiles = getattr(image, "tile", [])
    if len(tiles) != 1 or tiles[0][0] != "raw":
        return None
    _, _, offset, args = tiles[0]
    kind, stride, direction = (args, 0, 1) if isinstance(args, str) else (*args, 0, 1)[:3] if len(args) < 3 else args
    if kind not in _PLAIN or image.mode not in ("RGB", "RGBA"):
        return None
    stride = stride or image.width * _PLAIN[kind]
    return _raw_bands(image, stream, offset, kind, (stride, direction), _rows(stride, multiple))


def _raw_bands(
    image: Image.Image, stream: IO[bytes], offset: int, kind: str, order: tuple[int, int], rows: int
) -> Bands:
    stride, direction = order
    for top in range(0, image.height, rows):
        n = min(rows, image.height - top)
        first = top if direction > 0 else image.height - top - n  # else the last row comes first
        stream.seek(offset + first * stride)
        data = stream.read(n * stride)
        yield Image.frombuffer(image.mode, (image.width, n), data, "raw", kind, stride, direction)
