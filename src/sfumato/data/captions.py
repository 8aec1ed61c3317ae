"""Captions of a folder's images: columns of the metadata, else text files beside the images; one or several each."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path, PurePosixPath
from typing import Any, Literal, Protocol, runtime_checkable

from sfumato.counts import how_many, of_all
from sfumato.data.matching import folded
from sfumato.data.metadata import Row, way_to_column
from sfumato.data.metadata_files import folded as folded_column
from sfumato.data.opening import is_image
from sfumato.data.textfile import LARGEST_CAPTION, lines_of, read_text, shown
from sfumato.errors import UserError
from sfumato.rng import derive

Lines = Literal["first", "all", "each"]
Choices = tuple[tuple[str, float], ...]
"""The captions of one image with their weights above 0; the first is the one of evaluations and previews."""

ALIASES = ("text", "caption", "captions", "prompt", "texts", "txt", "description")
ENDINGS = (".txt", ".caption")
"""Endings of caption files; the first is used if an image has both."""
_TWICE = ".txt.txt"
"""An ending typed again where the system hides it."""


@dataclass(frozen=True)
class Captions:
    """The captions of each row; None if no image has one. `columns` and `files` are those that were read."""

    choices: tuple[Choices, ...] | None = None
    columns: tuple[str, ...] = ()
    files: frozenset[str] = frozenset()
    notes: tuple[str, ...] = ()

    def first(self) -> tuple[str, ...] | None:
        """One caption for each image, "" if it has none."""
        return None if self.choices is None else tuple(each[0][0] if each else "" for each in self.choices)


@runtime_checkable
class Captioned(Protocol):
    """A source with all captions of its examples, row by row; None without text."""

    def caption_choices(self) -> Sequence[Choices] | None: ...


def chosen_caption(choices: Choices, seed: int) -> str:
    """The caption sampled by weight from a seed; "" if there is none."""
    if len(choices) < 2:
        return choices[0][0] if choices else ""
    sums = list(accumulate(weight for _, weight in choices))
    place = derive(seed, "caption") / 2**63 * sums[-1]
    return next((text for (text, _), end in zip(choices, sums, strict=True) if place < end), choices[-1][0])


def captions_of(
    root: Path,
    rows: Sequence[Row],
    found: Sequence[str],
    column: str = "text",
    weights: Mapping[str, float] | None = None,
    lines: Lines = "first",
    encoding: str | None = None,
) -> Captions:
    """Reads the captions of all rows.

    `weights` names several columns, each with the weight at which training samples it; several texts of one column
    share it. Raises UserError for a column that no row has, a text that cannot be decoded, and values that are not
    text.
    """
    columns = _columns(rows, column, weights)
    beside = SideCars(found)
    choices: list[Choices] = []
    files: set[str] = set()
    empty: list[str] = []
    cut = 0
    for row in rows:
        captions = _from_columns(row, columns)
        file = None if captions else beside.of(row.file)
        if file is not None:
            text = read_text(root / file, encoding, LARGEST_CAPTION).strip()
            files.add(file)
            texts = split_lines(text, lines)
            if not texts:
                empty.append(file)
            cut += lines == "first" and len(split_lines(text, "each")) > 1
            captions = tuple((one, 1.0) for one in texts)
        choices.append(captions)
    notes = _notes(choices, columns, column, weights)
    if cut:
        notes += (
            f"{how_many(cut, 'caption file has', 'caption files have')} further lines, of which only the first is "
            "read: data.caption_lines=all joins them, each makes every line a separate caption",
        )
    if empty:
        notes += (f"{how_many(len(empty), 'caption file is', 'caption files are')} empty, such as {shown(empty[0])}",)
    return Captions(tuple(choices) if any(choices) else None, tuple(columns), frozenset(files), notes)


class SideCars:
    """Finds the text file beside an image: 0.txt, 0.caption, 0.png.txt, in any letter case and Unicode form.

    An exact name first; else the only file of a similar name that does not exactly belong to another image.
    """

    def __init__(self, found: Sequence[str]) -> None:
        texts = [name for name in found if PurePosixPath(name).suffix.casefold() in ENDINGS]
        self._exact = set(texts)
        images = [name for name in found if is_image(name)]
        owned = {name for image in images for name in _beside(image)}
        self._alike: dict[str, list[str]] = {}
        for name in texts:
            if name not in owned:
                self._alike.setdefault(folded(name), []).append(name)

    def of(self, image: str) -> str | None:
        """The caption file of an image, None if there is none."""
        names = _beside(image)
        exact = next((name for name in names if name in self._exact), None)
        if exact is not None:
            return exact
        alike = [self._alike[folded(name)] for name in names if folded(name) in self._alike]
        return alike[0][0] if alike and len(alike[0]) == 1 else None


def _beside(image: str) -> list[str]:
    stem = PurePosixPath(image).with_suffix("").as_posix()
    return [*(base + ending for ending in ENDINGS for base in (stem, image)), stem + _TWICE]


def split_lines(text: str, lines: Lines) -> list[str]:
    """The captions in a text: its first line, all of it, or each of its lines."""
    if lines == "all":
        return [text] if text else []
    parts = [line.strip() for line in lines_of(text) if line.strip()]
    return parts[:1] if lines == "first" else list(dict.fromkeys(parts))


def _columns(rows: Sequence[Row], column: str, weights: Mapping[str, float] | None) -> dict[str, float]:
    """The columns to read, with their weights; empty if the metadata has none."""
    known = sorted({key for row in rows for key in row.values})
    if weights:
        for name in weights:
            if name not in known:
                hint = way_to_column(name, known)
                raise UserError(f"data.captions names {name!r}, which is in no row of the metadata: {hint}")
        return dict(weights)
    if column in known:
        return {column: 1.0}
    for target in (folded_column(column), *(ALIASES if column == "text" else ())):
        alike = [name for name in known if folded_column(name) == target]
        if len(alike) == 1:
            return {alike[0]: 1.0}
    if column != "text":
        hint = way_to_column(column, known)
        raise UserError(f"text_column {column!r} is in no row of the metadata: {hint}")
    return {}


def _from_columns(row: Row, columns: Mapping[str, float]) -> Choices:
    """The row's captions from the metadata; those of a column share its weight."""
    out: list[tuple[str, float]] = []
    for column, weight in columns.items():
        texts = [text for values in (row.values, *row.further) for text in _texts(values.get(column), row, column)]
        texts = list(dict.fromkeys(texts))
        out += [(text, weight / len(texts)) for text in texts]
    return tuple(out)


def _texts(value: Any, row: Row, column: str) -> list[str]:
    entries = value if isinstance(value, list) else [value]
    for entry in entries:
        if isinstance(entry, list | dict):
            raise UserError(f"{row.where} has the {column} {shown(str(entry))}, which is not text: give text or a list")
    return [text for entry in entries if entry is not None and (text := str(entry).strip())]


def _notes(
    choices: Sequence[Choices], columns: Mapping[str, float], column: str, weights: Mapping[str, float] | None
) -> tuple[str, ...]:
    notes: list[str] = []
    without = sum(not each for each in choices)
    if without == len(choices):
        return ()
    other = [name for name in columns if name != column]
    if other and not weights:
        notes.append(f"captions come from the metadata's column {shown(other[0])}")
    if without:
        some = of_all(without, len(choices), "images has no caption and gets", "images have no caption and get")
        notes.append(f"{some} an empty one")
    several = sum(len(each) > 1 for each in choices)
    if several:
        most = max(Counter(map(len, choices)))
        notes.append(
            f"{of_all(several, len(choices), 'images has', 'images have')} several captions, up to {most}: training "
            "samples one each time, evaluation uses the first"
        )
    return tuple(notes)


def all_texts(choices: Iterable[Choices]) -> list[str]:
    """Every caption, image by image."""
    return [text for each in choices for text, _ in each]
