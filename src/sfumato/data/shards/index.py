"""What a shard contains: its samples, with the places of their bytes, texts, labels and headers of images.

A shard is read once, from start to end. The result is kept in the cache, so that it is opened at once afterwards.
"""

import io
import json
import re
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from hashlib import blake2b
from pathlib import Path
from typing import Any

from sfumato.data.captions import split_lines
from sfumato.data.dataset import UnreadableImage
from sfumato.data.images_config import ImagesConfig
from sfumato.data.opening import suffixes
from sfumato.data.packed import Packed, part_of
from sfumato.data.reading import ImageHeader, read_header
from sfumato.data.shards.tar import DamagedShard, Member, members
from sfumato.data.strict_json import parse_json
from sfumato.data.textfile import LARGEST_CAPTION, decoded_text
from sfumato.errors import UserError
from sfumato.plain_json import to_json

FORMAT = 1
TEXTS = ("txt", "caption", "text")
LABEL, VALUES = "cls", "json"
_AT_ONCE = 2**20
"""Bytes of a member up to which it is read at once."""
_NO_IMAGE = "no image has its key; what follows the first dot of a name counts as its ending"


@dataclass(frozen=True)
class Stored:
    """Bytes in the shard: `size` from `start` on."""

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
    """A shard's samples, in order; and (member, reason) of the images that cannot be read and of what is not used."""

    samples: tuple[Sample, ...]
    unreadable: tuple[tuple[str, str], ...] = ()
    left_out: tuple[tuple[str, str], ...] = ()


def read_index(path: Path, address: str, config: ImagesConfig) -> Index:
    """Reads a whole shard. Raises DamagedShard if it is none or not whole; UserError never concerns its content."""
    samples: list[Sample] = []
    unreadable: list[tuple[str, str]] = []
    left_out: list[tuple[str, str]] = []
    seen: set[str] = set()
    try:
        with path.open("rb") as file, path.open("rb") as data:
            length = file.seek(0, io.SEEK_END)
            for group in _groups(members(file, length)):
                try:
                    sample = _sample(group, path, data, address, config, left_out)
                except UnreadableImage as error:
                    unreadable.append((error.path.removeprefix(f"{address}/"), error.reason))
                    continue
                if sample is not None and sample.image.name in seen:
                    left_out.append((sample.image.name, "the shard has another image of this name"))
                elif sample is not None:
                    seen.add(sample.image.name)
                    samples.append(sample)
    except OSError as error:
        raise DamagedShard(f"it cannot be read: {error.strerror or error}") from None
    return Index(tuple(samples), tuple(unreadable), tuple(left_out))


def _groups(found: Iterator[Member]) -> Iterator[dict[str, Member]]:
    """Members by their endings, those with one key after the other together, as WebDataset groups them."""
    key, group = None, dict[str, Member]()
    for member in found:
        folder, _, base = member.name.rpartition("/")
        stem, dot, ending = base.partition(".")
        if not stem or folder.startswith("__MACOSX"):  # hidden files, and what archivers add
            continue
        own = (folder, stem)
        if own != key and group:
            yield group
        if own != key:
            key, group = own, {}
        group.setdefault(ending.lower() if dot else "", member)
    if group:
        yield group


def _sample(
    group: dict[str, Member],
    path: Path,
    data: io.BufferedReader,
    address: str,
    config: ImagesConfig,
    left_out: list[tuple[str, str]],
) -> Sample | None:
    """The sample of a group; None, with a reason in `left_out`, if it has no image. Raises UnreadableImage."""
    images = [ending for ending in group if _is_image(ending) and "." not in ending]
    if not images:
        left_out += [(member.name, _NO_IMAGE) for member in list(group.values())[:1]]
        return None
    image = group[images[0]]
    left_out += [(group[ending].name, "its key has another image") for ending in images[1:]]
    further: dict[str, Stored] = {}
    values: dict[str, Any] = {}
    table: dict[str, Any] = {}
    try:
        for ending, member in group.items():
            kind, _, last = ending.rpartition(".")
            if ending == VALUES:
                table = _table(_text(member, data, address, config), f"{address}/{member.name}")
            elif ending in TEXTS or ending == LABEL:
                name = "label" if ending == LABEL else "text"
                values[name] = _value(name, _text(member, data, address, config).strip(), config)
            elif kind and _is_image(last):
                further[kind] = Stored(member.name, member.start, member.size)
            elif ending not in images:
                left_out.append((member.name, "its ending is none of an image, a caption, a label or a table"))
    except UserError as error:
        raise UnreadableImage(f"{address}/{image.name}", str(error)) from None
    digest, header = _looked_at(image, path, data, address, config)
    # a caption file is the caption; a label in the table is a name, in KEY.cls often only its number
    values = {**table, **values, **({"label": table["label"]} if table.get("label") is not None else {})}
    return Sample(Stored(image.name, image.start, image.size), digest, header, values, further)


def _is_image(ending: str) -> bool:
    return f".{ending}" in suffixes()


def _text(member: Member, data: io.BufferedReader, address: str, config: ImagesConfig) -> str:
    name = f"{address}/{member.name}"
    if member.size > LARGEST_CAPTION:
        raise UserError(f"{name} is larger than {LARGEST_CAPTION:,} bytes, the most that is read as such a text")
    data.seek(member.start)
    return decoded_text(data.read(member.size), name, config.encoding)


def _table(text: str, where: str) -> dict[str, Any]:
    found = parse_json(text, where)
    if not isinstance(found, dict):
        raise UserError(f"{where} is not a JSON object")
    return found


def _value(name: str, text: str, config: ImagesConfig) -> Any:
    """A label, a whole number where it is one; or a caption, a list where each line is one."""
    if name == "label":
        return int(text) if re.fullmatch(r"\d{1,18}", text) else text
    lines = split_lines(text, config.caption_lines)
    return lines if len(lines) > 1 else "".join(lines)


def _looked_at(
    image: Member, path: Path, data: io.BufferedReader, address: str, config: ImagesConfig
) -> tuple[str, ImageHeader]:
    """The image's hash and header. Raises UnreadableImage."""
    place = f"{address}/{image.name}"
    data.seek(image.start)
    if image.size <= _AT_ONCE:
        content = data.read(image.size)
        packed = Packed(place, image.size, lambda: io.BytesIO(content))
        return blake2b(content, digest_size=16).hexdigest(), read_header(packed, config.max_pixels)
    digest, left = blake2b(digest_size=16), image.size
    while left > 0:
        part = data.read(min(left, _AT_ONCE))
        if not part:
            raise DamagedShard(f"it is cut off within {image.name!r}")
        digest.update(part)
        left -= len(part)
    packed = Packed(place, image.size, lambda: part_of(path, image.start, image.size))
    return digest.hexdigest(), read_header(packed, config.max_pixels)


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
        pairs = [tuple((str(a), str(b)) for a, b in found[name]) for name in ("unreadable", "left_out")]
        return Index(samples, *pairs)
    except (ValueError, KeyError, TypeError):
        return None
