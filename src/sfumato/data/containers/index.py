"""The index of a container of images: its images with the places of their bytes, texts, labels and headers.

A container is read once, from start to end. The result is kept in the cache, so that it is opened at once afterwards.
"""

import io
import json
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from hashlib import blake2b
from typing import IO, Any

from sfumato.data.packed import Packed
from sfumato.data.reading import ImageHeader, read_header
from sfumato.plain_json import to_json

FORMAT = 2
AT_ONCE = 2**20
"""Bytes of an image up to which it is read at once."""


class DamagedContainer(Exception):  # noqa: N818 - a verdict on a file
    """A file that is not of its kind, or not a whole one; the text is the reason."""


@dataclass(frozen=True)
class Stored:
    """Bytes in the container: `size` of them, at the place `start` by the container's own counting."""

    name: str
    start: int
    size: int


@dataclass(frozen=True)
class Sample:
    """An image with what belongs to it: `values` of its texts and tables, `further` images by their kind."""

    image: Stored
    digest: str
    header: ImageHeader
    values: dict[str, Any] = field(default_factory=dict)
    further: dict[str, Stored] = field(default_factory=dict)


@dataclass(frozen=True)
class Index:
    """A container's samples, in order.

    `unreadable` and `left_out` are (member, reason) of images that cannot be read and of what is not used; `starts`
    the samples at which parts begin that are read together, where the container has such parts.
    """

    samples: tuple[Sample, ...]
    unreadable: tuple[tuple[str, str], ...] = ()
    left_out: tuple[tuple[str, str], ...] = ()
    starts: tuple[int, ...] = (0,)


def looked_at(place: str, size: int, opened: Callable[[], IO[bytes]], max_pixels: int) -> tuple[str, ImageHeader]:
    """An image's hash and header. Raises UnreadableImage, and DamagedContainer if bytes are missing."""
    with opened() as stream:
        if size <= AT_ONCE:
            content = stream.read(size)
            if len(content) < size:
                raise DamagedContainer(f"it is cut off within {place!r}")
            packed = Packed(place, size, lambda: io.BytesIO(content))
            return blake2b(content, digest_size=16).hexdigest(), read_header(packed, max_pixels)
        digest, left = blake2b(digest_size=16), size
        while left > 0:
            part = stream.read(min(left, AT_ONCE))
            if not part:
                raise DamagedContainer(f"it is cut off within {place!r}")
            digest.update(part)
            left -= len(part)
    return digest.hexdigest(), read_header(Packed(place, size, opened), max_pixels)


def dumped(index: Index) -> str:
    """As text for the cache."""
    return to_json({"format": FORMAT, **asdict(index)})


def loaded(text: str) -> Index | None:
    """The index that `dumped` wrote; None if it is of another version or damaged."""
    try:
        found = json.loads(text)
        if found["format"] != FORMAT:
            return None
        samples = tuple(
            Sample(
                Stored(**one["image"]),
                one["digest"],
                ImageHeader(**one["header"]),
                one["values"],
                {kind: Stored(**place) for kind, place in one["further"].items()},
            )
            for one in found["samples"]
        )
        unreadable, left_out = (tuple((str(a), str(b)) for a, b in found[name]) for name in ("unreadable", "left_out"))
        return Index(samples, unreadable, left_out, tuple(map(int, found["starts"])))
    except (ValueError, KeyError, TypeError):
        return None
