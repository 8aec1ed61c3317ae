"""Which kind of data a place holds: a folder of images, shards, tables, databases."""

from pathlib import Path

from sfumato.data.containers.addresses import is_remote
from sfumato.data.opening import is_image
from sfumato.schema import checked_path

HUB = "hub:"
_BY_ENDING = {".tar": "shards", ".parquet": "parquet"}
_DATABASE = "data.mdb"
_METADATA = "metadata.parquet"
_LOOKED_AT = 1000
"""Entries of a folder that are looked at to find its kind."""


def kind_of(place: str) -> str:
    """The kind of addresses, patterns and folders by the files that they name or hold.

    `shards` for tar files, `parquet` for Parquet files and names of the hub, `lmdb` for databases. A folder that holds
    images too, and any other place, is a `folder`.
    """
    if place.startswith(HUB):
        return "parquet"
    ending = next((ending for ending in _BY_ENDING if place.endswith(ending)), None)
    if ending is not None or is_remote(place):
        return _BY_ENDING[ending or ".tar"]
    folder = Path(place)
    if not folder.is_dir():
        return "shards" if "{" in place else "folder"
    try:
        names = [entry.name for entry, _ in zip(folder.iterdir(), range(_LOOKED_AT), strict=False)]
        if _DATABASE in names or any((folder / name / _DATABASE).is_file() for name in names[:10]):
            return "lmdb"
    except OSError:
        return "folder"
    if any(map(is_image, names)):
        return "folder"
    found = [name for name in names if not name.startswith(".") and name.casefold() != _METADATA]
    kinds = (kind for ending, kind in _BY_ENDING.items() if any(name.endswith(ending) for name in found))
    return next(kinds, "folder")


def checked_place(text: str, name: str) -> str:
    """The place that an option names, with ~ expanded. Raises ValueError if it is neither a path nor an address."""
    return text if is_remote(text) or text.startswith(HUB) else checked_path(text, name)
