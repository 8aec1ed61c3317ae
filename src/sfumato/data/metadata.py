"""metadata.jsonl and metadata.csv: one row a picture, `file_name` relative to the metadata file, further columns."""

import csv
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path, PurePosixPath
from typing import Any

from sfumato.errors import UserError

NAMES = ("metadata.jsonl", "metadata.csv")
Label = str | int


@dataclass(frozen=True)
class Row:
    """A picture, by its path relative to the folder, and what its metadata says."""

    file: str
    values: dict[str, Any]

    def label(self, column: str) -> Label | None:
        """The label: an integer, or the text of anything else; None if absent or empty."""
        value = self.values.get(column)
        if value is None or value == "":
            return None
        return value if isinstance(value, int) and not isinstance(value, bool) else str(value)


def read_metadata(root: Path, found: Sequence[str]) -> tuple[list[Row], list[str], list[str]]:
    """Rows whose file exists; the folders that have metadata, as path prefixes; the files named in vain.

    A file named by several metadata files belongs to the deepest; several rows in one file are several examples.
    Raises UserError for a line that cannot be understood.
    """
    rows: dict[str, list[Row]] = {}
    owners: list[str] = []
    missing: list[str] = []
    present = set(found)
    deepest_last = sorted(
        (name for name in found if PurePosixPath(name).name in NAMES), key=lambda n: (n.count("/"), n)
    )
    for name in deepest_last:
        base = PurePosixPath(name).parent
        owners.append("" if str(base) == "." else f"{base}/")
        here: dict[str, list[Row]] = {}
        for file, values in _lines(root / name):
            path = _normal(base / file)
            if path in present or (path is not None and (root / path).is_file()):
                here.setdefault(path, []).append(Row(path, values))
            else:
                missing.append(str(base / file))
        rows.update(here)
    return [row for group in rows.values() for row in group], owners, missing


def columns_of(rows: Sequence[Row], names: Sequence[str]) -> dict[str, tuple[Any, ...]]:
    """The asked columns by name, None where a row lacks one; UserError for a column that no row has."""
    known = sorted({key for row in rows for key in row.values})
    for name in names:
        if name in ("text", "label"):
            raise UserError(
                f"columns lists {name!r}, which is read anyway: use text_column or label_column to choose it"
            )
        if name not in known:
            near = get_close_matches(name, known, 1) or known
            way_out = f"did you mean {near[0]!r}?" if near else "the folder has no metadata.jsonl or metadata.csv"
            raise UserError(f"columns lists {name!r}, which is in no row of the metadata: {way_out}")
    return {name: tuple(row.values.get(name) for row in rows) for name in names}


def _normal(path: PurePosixPath) -> str | None:
    """The path without '.' and '..'; None if it leaves the folder."""
    parts: list[str] = []
    for part in path.parts:
        if part == "..":
            if not parts:
                return None
            parts.pop()
        elif part != ".":
            parts.append(part)
    return None if path.is_absolute() else "/".join(parts)


def _lines(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    reader = _csv_lines if path.suffix == ".csv" else _json_lines
    for number, values in reader(path):
        file = values.pop("file_name", None)
        if not isinstance(file, str) or not file:
            raise UserError(f"line {number} of {path} has no file_name: each row must name its image")
        yield file.replace("\\", "/"), values


def _json_lines(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    with path.open(encoding="utf-8-sig") as lines:
        for number, line in enumerate(lines, 1):
            if not line.strip():
                continue
            try:
                values = json.loads(line)
            except json.JSONDecodeError as error:
                raise UserError(f"line {number} of {path} is not JSON ({error.msg}): write one object a line") from None
            if not isinstance(values, dict):
                raise UserError(f"line {number} of {path} is not a JSON object: write one object a line")
            yield number, values


def _csv_lines(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """Numbers stay text except whole ones, so that labels can be counted."""
    with path.open(encoding="utf-8-sig", newline="") as lines:
        for number, row in enumerate(csv.DictReader(lines), 2):
            values = {
                key: value for key, value in row.items() if isinstance(key, str) and isinstance(value, str) and value
            }
            yield (
                number,
                {k: int(v) if k != "file_name" and v.isascii() and v.isdigit() else v for k, v in values.items()},
            )
