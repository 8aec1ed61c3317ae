"""The samples of a shard: members of a tar file grouped by their keys, as WebDataset groups them."""

import io
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

from sfumato.data.captions import split_lines
from sfumato.data.containers.index import AT_ONCE, DamagedContainer, Index, Sample, Stored, looked_at
from sfumato.data.dataset import UnreadableImage
from sfumato.data.images_config import ImagesConfig
from sfumato.data.opening import suffixes
from sfumato.data.packed import part_of
from sfumato.data.shards.tar import Member, members
from sfumato.data.strict_json import parse_json
from sfumato.data.textfile import LARGEST_CAPTION, decoded_text
from sfumato.errors import UserError

TEXTS = ("txt", "caption", "text")
LABEL, VALUES = "cls", "json"
_NO_IMAGE = "no image has its key; what follows the first dot of a name counts as its ending"


def open_member(path: Path, stored: Stored) -> IO[bytes]:
    """A member's bytes. Raises OSError."""
    if stored.size > AT_ONCE:
        return part_of(path, stored.start, stored.size)
    file = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        return io.BytesIO(os.pread(file, stored.size, stored.start))
    finally:
        os.close(file)


def read_shard(path: Path, address: str, config: ImagesConfig) -> Index:
    """Reads a whole shard. Raises DamagedContainer if it is none or not whole; UserError never concerns its content."""
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
    except FileNotFoundError:
        raise
    except OSError as error:
        raise DamagedContainer(f"it cannot be read: {error.strerror or error}") from None
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
    place = f"{address}/{image.name}"
    digest, header = looked_at(place, image.size, lambda: part_of(path, image.start, image.size), config.max_pixels)
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
