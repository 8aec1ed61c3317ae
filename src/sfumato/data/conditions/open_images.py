"""Boxes of OpenImages: a csv file with a line for each box, and one with the names of the categories."""

import csv
from collections.abc import Mapping
from pathlib import Path

from sfumato.data.textfile import lines_of, read_text
from sfumato.errors import UserError

NAMES = "class-descriptions-boxable.csv"
_COLUMNS = ("ImageID", "LabelName", "XMin", "XMax", "YMin", "YMax")
_GROUP = "IsGroupOf"

Entry = tuple[str, tuple[float, float, float, float], str]
"""Name of the category; x, y, width, height as fractions of the image; the place in the file, for messages."""


def read_boxes(path: Path) -> tuple[dict[str, list[Entry]], tuple[str, ...]]:
    """Boxes by ImageID, and the names of the categories in the order of their list, sorted without one.

    Boxes of groups are left out: they hold no single object. Raises UserError for a file of another form.
    """
    names = _names(path.with_name(NAMES))
    rows = csv.DictReader(lines_of(read_text(path)))
    missing = [name for name in _COLUMNS if name not in (rows.fieldnames or ())]
    if missing:
        raise UserError(f"{path} has no column {missing[0]}: OpenImages' files of boxes have {', '.join(_COLUMNS)}")
    found: dict[str, list[Entry]] = {}
    used: set[str] = set()
    for number, row in enumerate(rows, 2):
        if row.get(_GROUP) == "1":
            continue
        where = f"line {number} of {path}"
        try:
            left, right, top, bottom = (float(row[name]) for name in _COLUMNS[2:])
        except (TypeError, ValueError):
            raise UserError(f"{where} has no four numbers in {', '.join(_COLUMNS[2:])}") from None
        label = names.get(row["LabelName"], row["LabelName"])
        used.add(label)
        found.setdefault(row["ImageID"], []).append((label, (left, top, right - left, bottom - top), where))
    return found, tuple(dict.fromkeys(names.values())) or tuple(sorted(used))


def _names(path: Path) -> Mapping[str, str]:
    if not path.is_file():
        return {}
    rows = [row for row in csv.reader(lines_of(read_text(path))) if len(row) == 2]
    return {label: name for label, name in rows if label.startswith("/")}
