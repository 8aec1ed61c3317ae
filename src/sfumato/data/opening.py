"""Which files are images, and opening one: regular files only, by Pillow and its installed plug-ins."""

import stat
import struct
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import cache
from importlib import import_module
from importlib.util import find_spec
from io import BytesIO
from pathlib import Path
from typing import IO

from PIL import Image, UnidentifiedImageError, features

from sfumato.data.dataset import UnreadableImage
from sfumato.data.packed import ImageFile, Packed
from sfumato.data.room import holding_file

SUFFIXES = frozenset(
    f".{ending}"
    for ending in (
        *("png", "apng", "jpg", "jpeg", "jpe", "jfif", "mpo", "webp", "bmp", "dib", "tif", "tiff", "gif"),
        *("ppm", "pgm", "pbm", "pnm", "tga", "avif", "jp2", "j2k", "jpx", "ico", "pcx", "qoi"),
    )
)
"""File name endings of images, in lower case; a metadata file may name others. See `is_image`."""

_PLUGINS = {
    "pillow_heif": ("pillow-heif", "register_heif_opener", (".heic", ".heif", ".hif")),
    "pillow_avif": ("pillow-avif-plugin", "", (".avif", ".avifs")),
    "pillow_jxl": ("pillow-jxl-plugin", "", (".jxl",)),
}
"""By module: its package, the function to call after importing it, the endings that it reads."""

_CAMERA = "develop it and save it as PNG, TIFF or JPEG"
_LAYERS = "flatten it and save it as PNG"
_DRAWING = "render it to PNG"
_VIDEO = "it is a video: save its frames as PNG or JPEG"
_HIGH_RANGE = "tone-map it and save it as PNG, or save it as a float TIFF"
_OTHER = {
    **dict.fromkeys(
        ("raw", "dng", "cr2", "cr3", "crw", "nef", "nrw", "arw", "srf", "sr2", "orf", "rw2", "raf", "pef", "srw"),
        _CAMERA,
    ),
    **dict.fromkeys(("3fr", "iiq", "x3f", "erf", "kdc", "dcr", "mrw", "rwl"), _CAMERA),
    **dict.fromkeys(("psd", "psb", "xcf", "kra", "ora", "clip", "afphoto", "pdn", "sketch"), _LAYERS),
    **dict.fromkeys(("svg", "svgz", "ai", "eps", "pdf", "cdr", "wmf", "emf"), _DRAWING),
    **dict.fromkeys(
        ("mp4", "m4v", "mov", "avi", "mkv", "webm", "mpg", "mpeg", "wmv", "flv", "3gp", "gifv", "ogv", "mts", "m2ts"),
        _VIDEO,
    ),
    **dict.fromkeys(("hdr", "exr", "pfm", "rgbe"), _HIGH_RANGE),
    **dict.fromkeys(("heics", "avifs", "jxr", "wdp", "bpg", "flif", "djvu", "icns", "cur", "dds", "sgi", "jp2k"), ""),
}
"""Endings of images that cannot be read here, and what to do with such a file."""

_NO_FORMATS = frozenset({"EPS", "WMF", "FPX", "MIC", "BUFR", "GRIB", "HDF5", "MPEG"})
"""Formats that Pillow passes to other programs or only recognises."""

_IN_MEMORY = 2**20  # smaller files are read at once, larger ones as they are decoded


@cache
def suffixes() -> frozenset[str]:
    """Endings of the images that can be read on this machine; plug-ins are registered with Pillow on the way."""
    found = set(SUFFIXES)
    if not features.check("avif"):
        found.discard(".avif")
    if not features.check("webp"):
        found.discard(".webp")
    if not features.check("jpg_2000"):
        found -= {".jp2", ".j2k", ".jpx"}
    for module, (_, register, endings) in _PLUGINS.items():
        if find_spec(module) is None or set(endings) <= found:
            continue
        with suppress(Exception):  # a plug-in that fails counts as missing
            plugin = import_module(module)
            if register:
                getattr(plugin, register)()
            found.update(endings)
    return frozenset(found)


def is_image(name: str) -> bool:
    """Whether a file of this name counts as an image."""
    return Path(name).suffix.lower() in suffixes()


def why_not(name: str) -> str | None:
    """For a file that is an image or a video but cannot be read: what to do. None for any other file."""
    ending = Path(name).suffix.lower()
    if ending in suffixes():
        return None
    for package, _, endings in _PLUGINS.values():
        if ending in endings:
            return f"install {package} to read it"
    if ending in SUFFIXES:
        return f"this Pillow was built without {ending[1:]}: install the Pillow of PyPI"
    advice = _OTHER.get(ending[1:])
    return None if advice is None else advice or "save it as PNG or JPEG"


@contextmanager
def named(path: ImageFile) -> Iterator[None]:
    """Turns any exception of a decoder into UnreadableImage.

    A damaged file may raise nearly anything from inside Pillow's plug-ins (OSError, SyntaxError, struct.error,
    IndexError), so everything except lack of memory counts as a damaged file.
    """
    try:
        yield
    except (UnreadableImage, MemoryError):
        raise
    except UnidentifiedImageError as error:
        raise UnreadableImage(str(path), _recognised(path)) from error
    except Exception as error:
        reason = str(error).replace(str(path), path.name) or type(error).__name__
        raise UnreadableImage(str(path), reason) from error


def check_regular(path: ImageFile) -> int:
    """Bytes of a regular file that is not empty, without opening it; links are followed. Raises UnreadableImage."""
    if isinstance(path, Packed):
        if path.size == 0:
            raise UnreadableImage(str(path), "the file is empty")
        return path.size
    with named(path):
        try:
            status = path.stat()
        except OSError:
            if path.is_symlink() and not path.exists():
                raise UnreadableImage(str(path), "it is a link that leads to no file") from None
            raise
    mode = status.st_mode
    if stat.S_ISDIR(mode):
        raise UnreadableImage(str(path), "it is a folder: give one of its files")
    if not stat.S_ISREG(mode):
        raise UnreadableImage(str(path), f"it is {kind_of(mode)}, not a regular file")
    if status.st_size == 0:
        raise UnreadableImage(str(path), "the file is empty")
    return status.st_size


def kind_of(mode: int) -> str:
    """The kind of a file that is not regular, from its `st_mode`."""
    kinds = ((stat.S_ISFIFO, "a named pipe"), (stat.S_ISSOCK, "a socket"), (stat.S_ISDIR, "a folder"))
    return next((name for test, name in kinds if test(mode)), "a device")


@contextmanager
def stream_of(path: ImageFile) -> Iterator[IO[bytes]]:
    """A regular file's bytes. Raises UnreadableImage, also for exceptions within the block."""
    size = check_regular(path)
    with named(path), path.open("rb", buffering=2**16) as stream:
        if size <= _IN_MEMORY:
            yield BytesIO(stream.read())
        elif _read_at_once(stream):
            with holding_file(size):
                yield stream
        else:
            yield stream


def _read_at_once(stream: IO[bytes]) -> bool:
    """Whether Pillow reads the whole file for its header already: WebP, AVIF, HEIC."""
    head = stream.read(12)
    stream.seek(0)
    return head[8:] == b"WEBP" or head[4:8] == b"ftyp"


@contextmanager
def opened(path: ImageFile) -> Iterator[Image.Image]:
    """The first frame of an image file of any size: its header is read, its pixels are not yet decoded.

    All files of users are opened as images here. Raises UnreadableImage for anything that is not a regular file or
    not an image, and for exceptions of decoding within the block.
    """
    with stream_of(path) as stream, identified(stream) as image:
        yield image


def identified(stream: IO[bytes]) -> Image.Image:
    """As `Image.open`, without its check of the number of pixels, which is one setting for the whole process.

    Callers bound the pixels by `data.max_pixels` instead. Raises UnidentifiedImageError.
    """
    suffixes()  # registers plug-ins
    prefix = stream.read(16)
    tried = set(_NO_FORMATS)
    for load_plugins in (Image.preinit, Image.init):
        load_plugins()
        for name in [name for name in Image.ID if name not in tried]:
            tried.add(name)
            factory, accept = Image.OPEN[name]
            accepted = True if accept is None else accept(prefix)
            if not accepted or isinstance(accepted, str):  # a text: the format is not built in
                continue
            stream.seek(0)
            with suppress(SyntaxError, IndexError, TypeError, struct.error):  # it is of another format
                return factory(stream, "")
    raise UnidentifiedImageError("it is not an image of a known format")


_SIGNS = (
    (b"version https://git-lfs", "it is a pointer of git-lfs: fetch the files with `git lfs pull`"),
    (b"<svg", f"it is an SVG drawing: {_DRAWING}"),
    (b"<!doctype", "it is a web page: download the image itself"),
    (b"<html", "it is a web page: download the image itself"),
    (b"<?xml", f"it is an XML file, perhaps an SVG drawing: {_DRAWING}"),
    (b"%pdf", f"it is a PDF: {_DRAWING}"),
    (b"%!ps", f"it is PostScript: {_DRAWING}"),
    (b"\xff\x0a", "it is a JPEG XL image: install pillow-jxl-plugin to read it"),
    (b"\0\0\0\x0cjxl ", "it is a JPEG XL image: install pillow-jxl-plugin to read it"),
    (b"#?radiance", f"it is a Radiance HDR image: {_HIGH_RANGE}"),
    (b"v/1\x01", f"it is an OpenEXR image: {_HIGH_RANGE}"),
    (b"pk\x03\x04", "it is a zip archive: unpack it"),
    *(
        (sign, f"it is a damaged {kind} image")
        for sign, kind in (
            *((b"\x89png", "PNG"), (b"\xff\xd8\xff", "JPEG"), (b"gif8", "GIF"), (b"riff", "WebP")),
            *((b"ii*\0", "TIFF"), (b"mm\0*", "TIFF")),
        )
    ),
)


def _recognised(path: ImageFile) -> str:
    """The kind of a file of a format unknown to Pillow, by its first bytes."""
    try:
        with path.open("rb") as stream:
            head = stream.read(64)
    except OSError:
        head = b""
    if head[4:8] == b"ftyp":
        brand = head[8:12]
        if brand[:3] in (b"hei", b"hev", b"mif", b"msf"):
            return "it is a HEIC image: install pillow-heif to read it"
        if brand[:3] == b"avi":
            readable = ".avif" in suffixes()
            return "it is a damaged AVIF image" if readable else "it is an AVIF image, which this Pillow cannot read"
        return _VIDEO
    start = head.lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    return next(
        (reason for sign, reason in _SIGNS if start.startswith(sign.lower())), "it is not an image of a known format"
    )
