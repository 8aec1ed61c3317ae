"""classes.txt: a class a line, the first is number 0; a colour may follow the name."""

import re
from dataclasses import dataclass
from pathlib import Path

from PIL import ImageColor

from sfumato.conditioning.metadata import Rgb
from sfumato.data.textfile import LARGEST_CAPTION, lines_of, read_text
from sfumato.errors import UserError

_NUMBERS = re.compile(r"^(.*?)[\s,;]+(\d{1,3})[\s,]+(\d{1,3})[\s,]+(\d{1,3})$")
_HEX = re.compile(r"^(.*?)[\s,;]+(#[0-9a-fA-F]{6})$")


@dataclass(frozen=True)
class ClassNames:
    """Names by number; colours by number if the file has one for each, else None."""

    names: tuple[str, ...]
    colours: tuple[Rgb, ...] | None = None


def read_class_names(path: Path, encoding: str | None = None) -> ClassNames:
    """Lines `name`, `name #rrggbb` or `name r g b`; empty ones at the end do not count.

    Raises UserError as `read_text` does, and for a missing or empty file, a missing or repeated name, colours
    for some classes only, and a repeated colour.
    """
    if not path.is_file():
        raise UserError(f"{path} is missing: write the class names there, one a line, the first is number 0")
    text = read_text(path, encoding, LARGEST_CAPTION).rstrip()
    if not text:
        raise UserError(f"{path} is empty: write the class names there, one a line, the first is number 0")
    found = [_parse(line.strip()) for line in lines_of(text)]
    names = tuple(name for name, _ in found)
    for number, name in enumerate(names, 1):
        if not name:
            raise UserError(f"line {number} of {path} names no class: give every number a name, also an unused one")
        if name in names[: number - 1]:
            raise UserError(f"line {number} of {path} names {name!r} again: give each class a name of its own")
    colours = tuple(colour for _, colour in found if colour is not None)
    if not colours:
        return ClassNames(names)
    if len(colours) < len(names):
        raise UserError(f"{path} gives colours to {len(colours)} of {len(names)} classes: give all one, or none")
    if len(set(colours)) < len(colours):
        twice = next(colour for colour in colours if colours.count(colour) > 1)
        raise UserError(f"{path} gives the colour {hex_of(twice)} to two classes: give each its own")
    return ClassNames(names, colours)


def hex_of(colour: Rgb) -> str:
    """#rrggbb."""
    return "#{:02x}{:02x}{:02x}".format(*colour)


def _parse(line: str) -> tuple[str, Rgb | None]:
    if match := _HEX.match(line):
        r, g, b = ImageColor.getrgb(match[2])[:3]
        return match[1].strip(), (r, g, b)
    match = _NUMBERS.match(line)
    if match and all(int(value) < 256 for value in match.groups()[1:]):
        return match[1].strip(), (int(match[2]), int(match[3]), int(match[4]))
    return line, None
