"""Classes of a folder's images, from the metadata, else from the sub-folders; counts, and similar names."""

import re
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from sfumato.counts import how_many, of_all
from sfumato.data.metadata import Row
from sfumato.data.metadata_files import folded
from sfumato.data.textfile import shown
from sfumato.errors import UserError

SPLITS = frozenset({"train", "training", "trn", "test", "testing", "tst", "val", "valid", "validation", "dev", "eval"})
"""Folders of these names (in any letter case) split a dataset; they are not classes."""
ALIASES = ("label", "class", "category", "class_name")
_NAMED = 20


@dataclass(frozen=True)
class Labels:
    """The class of each row by number, and the classes' names; None if the set has no labels."""

    numbers: tuple[int, ...] | None = None
    classes: tuple[str, ...] | None = None
    column: str | None = None
    """The metadata's column that they come from."""
    notes: tuple[str, ...] = ()

    def counts(self) -> dict[str, int]:
        """Images per class, in the classes' order."""
        if self.numbers is None or self.classes is None:
            return {}
        count = Counter(self.numbers)
        return {name: count[i] for i, name in enumerate(self.classes)}


def labels_of(rows: Sequence[Row], column: str) -> Labels:
    """From the metadata's column, else from the first sub-folder below a split's, if all images are in one.

    Whole numbers are sorted as numbers, all else as text; classes are those that occur. Raises UserError for a label
    that is neither text nor number, and for negative numbers.
    """
    chosen = label_column(rows, column)
    values = [None if chosen is None else _label(row, chosen) for row in rows]
    if all(value is None for value in values):
        return _from_folders([row.file for row in rows])
    without = sum(value is None for value in values)
    if without:
        some = of_all(without, len(rows), "images has", "images have")
        note = f"{some} no {chosen}, so the set has no labels"
        return Labels(column=chosen, notes=(note,))
    found = _numbered([value for value in values if value is not None])
    source = () if chosen == column else (f"labels come from the metadata's column {shown(chosen or '')}",)
    return Labels(*found, column=chosen, notes=(*source, *_notes(*found)))


def label_column(rows: Sequence[Row], column: str) -> str | None:
    """The column of the labels: `column`, else one of a similar name, or, for the default name, one of its aliases."""
    known = dict.fromkeys(key for row in rows for key in row.values)
    if column in known:
        return column
    for target in (folded(column), *(ALIASES if column == "label" else ())):
        found = [key for key in known if folded(key) == target]
        plain = all(not isinstance(row.values.get(key), list | dict) for row in rows for key in found)
        if len(found) == 1 and plain:
            return found[0]
    return None


def near_twins(names: Sequence[str]) -> list[tuple[str, ...]]:
    """Names that differ in letter case, blanks, hyphens, invisible marks or Unicode form alone, or are one number."""
    groups: dict[str, list[str]] = defaultdict(list)
    for name in names:
        groups[_plain(name)].append(name)
    return [tuple(group) for group in groups.values() if len(group) > 1]


def _plain(name: str) -> str:
    """A name for comparison."""
    visible = "".join(c for c in unicodedata.normalize("NFKC", name) if unicodedata.category(c) != "Cf")
    if re.fullmatch(r"\s*\d{1,18}(\.0*)?\s*", visible):
        return str(int(visible.split(".")[0]))
    return re.sub(r"[\s_-]+", " ", visible.casefold()).strip()


def counted(counts: dict[str, int]) -> str:
    """One line of classes and their numbers of images, the first twenty of them."""
    listed = ", ".join(
        f"{name if name.isprintable() else shown(name)} {count}" for name, count in list(counts.items())[:_NAMED]
    )
    return listed + (f", and {len(counts) - _NAMED} more" if len(counts) > _NAMED else "")


def classes_note(counts: dict[str, int]) -> str:
    """The sentence that lists the classes."""
    return f"{how_many(len(counts), 'class', 'classes')}: {counted(counts)}"


def _label(row: Row, column: str) -> str | int | None:
    value: Any = row.values.get(column)
    if isinstance(value, list | dict):
        raise UserError(f"{row.where} has the {column} {shown(str(value))}, which is not a single name: give text")
    if isinstance(value, float) and value.is_integer() and abs(value) < 2**53:
        value = int(value)  # JSON has one kind of number, and tables with gaps are written with 1.0 for 1
    if isinstance(value, int) and not isinstance(value, bool):
        if value < 0:
            raise UserError(
                f"label {value} in the metadata is negative: count classes from 0, or give their names ({row.where})"
            )
        return value
    name = "" if value is None else unicodedata.normalize("NFC", str(value)).strip()
    return name or None


def _numbered(labels: Sequence[str | int]) -> tuple[tuple[int, ...], tuple[str, ...]]:
    """Class ids and names. No size here depends on a label's value, which may be huge."""
    whole = {value for value in labels if isinstance(value, int)}
    names = [
        str(value) for value in (sorted(whole) if len(whole) == len(set(labels)) else sorted(set(map(str, labels))))
    ]
    number = {name: i for i, name in enumerate(names)}
    return tuple(number[str(value)] for value in labels), tuple(names)


def _from_folders(files: Sequence[str]) -> Labels:
    folders = [[unicodedata.normalize("NFC", part).strip() for part in file.split("/")[:-1]] for file in files]
    splits: list[str] = []
    if all(folder and folder[0].casefold() in SPLITS for folder in folders):
        splits = sorted({folder[0] for folder in folders})
        folders = [folder[1:] for folder in folders]
    notes: tuple[str, ...] = ()
    if splits:
        named = "the folder " + splits[0] if len(splits) == 1 else "the folders " + ", ".join(splits)
        notes = (
            f"{named} split the set and are not classes; all of it is read, unless data.leave_out names some of them",
        )
    loose = [file for file, folder in zip(files, folders, strict=True) if not folder]
    if loose or len({folder[0] for folder in folders}) < 2:
        return Labels(notes=(*notes, *_why_none(folders, loose)))
    found = _numbered([folder[0] for folder in folders])
    mixed = [name for name in found[1] if name.casefold() in SPLITS]
    if mixed:
        notes += (f"the folder {mixed[0]} is used as a class, like the others beside it",)
    notes += _inside(folders)
    return Labels(*found, notes=(*notes, *_notes(*found)))


def _inside(folders: Sequence[Sequence[str]]) -> tuple[str, ...]:
    """A note if classes have folders inside, which are not distinguished."""
    below: dict[str, set[str]] = {}
    for folder in folders:
        below.setdefault(folder[0], set()).update(folder[1:2])
    several = [(name, min(inner)) for name, inner in below.items() if len(inner) > 1]
    if not several:
        return ()
    first = shown("/".join(several[0]))
    return (f"the classes are the outer folders: those inside, such as {first}, are not distinguished",)


def _why_none(folders: Sequence[Sequence[str]], loose: Sequence[str]) -> tuple[str, ...]:
    """A note where folders look like classes, and are none because of others beside or above them."""
    firsts = {folder[0] for folder in folders if folder}
    if loose and len(firsts) > 1:
        return (
            f"{of_all(len(loose), len(folders), 'images is', 'images are')} in no sub-folder, such as "
            f"{shown(loose[0])}, so the folders are no classes",
        )
    below = {folder[1] for folder in folders if len(folder) > 1}
    if not loose and len(below) > 1 and all(len(folder) > 1 for folder in folders):
        return (
            f"all images are below the folder {shown(min(firsts))}, so the folders in it are no classes: give that "
            "folder as the data if they are meant",
        )
    return ()


_IMAGES = frozenset({"image", "images", "img", "imgs", "photos", "jpegimages"})
_BESIDE_IMAGES = frozenset({"mask", "masks", "annotation", "annotations", "labels", "segmentation", "depth", "edges"})
_NO_VALUE = frozenset({"nan", "null", "none", "n/a", "na", "<na>", "#n/a", "nil"})
"""Texts that programs write for a missing value."""


def _notes(numbers: Sequence[int], classes: Sequence[str]) -> tuple[str, ...]:
    counts = Labels(tuple(numbers), tuple(classes)).counts()
    notes = [classes_note(counts)]
    unnamed = [name for name in classes if name.casefold() in _NO_VALUE]
    if unnamed:
        notes.append(
            f"the class {shown(unnamed[0])} of {how_many(counts[unnamed[0]], 'image')} is named as missing values are: "
            "leave the label empty if there is none"
        )
    beside = [name for name in classes if name.casefold() in _BESIDE_IMAGES]
    if beside and any(name.casefold() in _IMAGES for name in classes):
        notes.append(
            f"the folder {shown(beside[0])} is used as a class: if its images are masks or maps of the others, name it "
            "in data.leave_out"
        )
    single = [name for name, count in counts.items() if count == 1]
    if 0 < len(single) <= len(classes) / 2:
        some = of_all(len(single), len(classes), "classes has", "classes have")
        notes.append(f"{some} a single image, such as {shown(single[0])}")
    for group in near_twins(classes)[:3]:
        notes.append(f"the classes {' and '.join(map(shown, group))} differ only in spelling: are they the same?")
    return tuple(notes)
