"""Which files a path means: a folder, one file, patterns with braces or stars, local or on another machine."""

import glob
import re
from itertools import product
from pathlib import Path

from sfumato.data.textfile import shown
from sfumato.errors import UserError

MOST = 1_000_000
"""Shards at most: LAION-5B has 231,349."""
_BRACES = re.compile(r"\{([^{}]*)\}")
_RANGE = re.compile(r"(\d+)\.\.(\d+)")
_COMPRESSED = (".tar.gz", ".tgz", ".tar.zst", ".tar.xz", ".tar.bz2")


def is_remote(address: str) -> bool:
    """Whether an address is of another machine, or of a file system that fsspec opens."""
    return "://" in address and not address.startswith("file://")


def addresses_of(path: str, ending: str) -> list[str]:
    """The addresses of all files, in order; those of a folder end in `ending`.

    Raises UserError if there are none, or a local one does not exist.
    """
    found = [address for part in expanded(path) for address in _found(part.removeprefix("file://"), ending)]
    if len(found) > MOST:
        raise UserError(f"data.path {shown(path)} names more than {MOST:,} shards: give a pattern of fewer")
    if not found:
        raise UserError(f"data.path {shown(path)} names no shards: expected files such as 000000{ending}")
    packed = next((address for address in found if address.lower().endswith(_COMPRESSED)), None)
    if packed is not None:
        raise UserError(f"shard {packed} is compressed, so no image in it can be read by itself: decompress it first")
    missing = [address for address in found if not is_remote(address) and not Path(address).exists()]
    if missing:
        raise UserError(
            f"{len(missing)} of {len(found)} shards do not exist, the first is {missing[0]}: restore them, or leave "
            "them out of data.path"
        )
    return list(dict.fromkeys(found))


def expanded(pattern: str) -> list[str]:
    """`{000..011}` as numbers of the same width, `{a,b}` as alternatives, several of them combined.

    Raises UserError for braces that are neither, and for more than MOST results.
    """
    parts = _BRACES.split(pattern)
    choices = [[part] if i % 2 == 0 else _choices(part, pattern) for i, part in enumerate(parts)]
    count = 1
    for each in choices:
        count *= len(each)
        if count > MOST:
            raise UserError(f"data.path {shown(pattern)} names more than {MOST:,} shards: give a pattern of fewer")
    return ["".join(chosen) for chosen in product(*choices)]


def _choices(inner: str, pattern: str) -> list[str]:
    found = _RANGE.fullmatch(inner)
    if found is None:
        if "," not in inner:
            raise UserError(
                f"data.path {shown(pattern)} has {{{inner}}}, which is not a range: write {{000000..000009}} or {{a,b}}"
            )
        return inner.split(",")
    first, last = int(found[1]), int(found[2])
    if last < first or last - first >= MOST:
        raise UserError(f"data.path {shown(pattern)} has the range {{{inner}}}: give at most {MOST:,}, upwards")
    width = len(found[1]) if found[1].startswith("0") else 0
    return [f"{number:0{width}d}" for number in range(first, last + 1)]


def _found(address: str, ending: str) -> list[str]:
    """The shards that an address without braces means: itself, or those of a folder or a pattern with stars."""
    if is_remote(address):
        return _found_elsewhere(address, ending)
    place = Path(address)
    if place.is_dir():
        return sorted(str(one) for one in place.iterdir() if one.suffix == ending and not one.name.startswith("."))
    return sorted(glob.glob(address)) if glob.has_magic(address) else [address]


def _found_elsewhere(address: str, ending: str) -> list[str]:
    if not address.endswith("/") and not glob.has_magic(address):
        return [address]
    from sfumato.data.containers.downloads import listed

    return listed(address if glob.has_magic(address) else f"{address}*{ending}")
