"""Which kind of data a place holds: a folder of images, shards."""

from pathlib import Path

from sfumato.data.opening import is_image
from sfumato.data.shards.addresses import ENDING, is_remote
from sfumato.schema import checked_path

_LOOKED_AT = 1000
"""Entries of a folder that are looked at to find its kind."""


def kind_of(place: str) -> str:
    """`shards` for addresses and patterns of tar files and for a folder that holds some but no image; else `folder`."""
    if is_remote(place) or place.endswith(ENDING):
        return "shards"
    folder = Path(place)
    if not folder.is_dir():
        return "shards" if "{" in place else "folder"
    try:
        names = [entry.name for entry, _ in zip(folder.iterdir(), range(_LOOKED_AT), strict=False)]
    except OSError:
        return "folder"
    return "shards" if any(map(_is_shard, names)) and not any(map(is_image, names)) else "folder"


def checked_place(text: str, name: str) -> str:
    """The place that an option names, with ~ expanded. Raises ValueError if it is neither a path nor an address."""
    return text if is_remote(text) else checked_path(text, name)


def _is_shard(name: str) -> bool:
    return name.endswith(ENDING) and not name.startswith(".")
