"""Numbered images in a folder: each takes the first number that is free, also where several commands write at once."""

import re
from collections.abc import Iterator
from itertools import count
from pathlib import Path

_NUMBERED = re.compile(r"(\d{4,})\.(?:png|tif)")


def next_number(folder: Path) -> int:
    """One more than the highest number of an image in the folder, 0 if there is none."""
    if not folder.is_dir():
        return 0
    found = (_NUMBERED.fullmatch(path.name) for path in folder.iterdir())
    return max((int(match.group(1)) + 1 for match in found if match), default=0)


def numbered(folder: Path, first: int, suffix: str = ".png") -> Iterator[Path]:
    """The names of numbered images from a number on."""
    return (folder / f"{number:04d}{suffix}" for number in count(first))


def number_of(path: Path) -> int:
    """The number of a numbered image."""
    return int(path.stem)


def beside(folder: Path, kind: str, first: int, suffix: str = ".png") -> Iterator[Path]:
    """The names of what belongs to the images from number `first` on, such as `strip-0004.png`."""
    yield folder / f"{kind}-{first:04d}{suffix}"
    for again in count(2):
        yield folder / f"{kind}-{first:04d}-{again}{suffix}"


def sheets(folder: Path, first: int) -> Iterator[Path]:
    """The names of the sheet of images from number `first` on: `grid.png` for those from 0 on."""
    if first == 0:
        yield folder / "grid.png"
    yield from beside(folder, "grid", first)
