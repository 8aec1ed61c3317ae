"""Formats of metadata files: CSV with any usual delimiter, JSON lines, one JSON value, Parquet."""

import csv
import io
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sfumato.data.strict_json import parse_json, read_json
from sfumato.data.textfile import lines_of, read_text, shown
from sfumato.errors import UserError

ENDINGS = (".csv", ".tsv", ".jsonl", ".ndjson", ".json", ".parquet")
STEM = "metadata"

_FILE_COLUMNS = ("file_name", "filename", "file", "image", "image_file", "image_path", "file_path", "filepath", "path")
_DELIMITERS = (",", ";", "\t", "|")
_MOST_DIGITS = 18


class NotMetadata(Exception):  # noqa: N818 - a verdict on a file, not a failure
    """A metadata.json that does not describe images one by one; the text describes its content."""


@dataclass(frozen=True)
class FileRow:
    """One row: its place, for messages; the image's name as written there; all else by column."""

    where: str
    file: str
    values: dict[str, Any]


def is_metadata(name: str) -> bool:
    """Whether a file's name, without folders, is that of a metadata file; letter case does not matter."""
    stem, dot, ending = name.casefold().rpartition(".")
    return stem == STEM and dot + ending in ENDINGS


def read_rows(path: Path, encoding: str | None = None) -> list[FileRow]:
    """All rows. Raises UserError, naming the line, for anything ambiguous, and for a file without a row;
    NotMetadata for a metadata.json of another form."""
    ending = path.suffix.casefold()
    if ending in (".csv", ".tsv"):
        found = _csv(path, encoding)
    elif ending in (".jsonl", ".ndjson"):
        found = _json_lines(path, encoding)
    elif ending == ".json":
        found = _json_value(path, read_json(path, encoding))
    else:
        found = _parquet(path)
    rows = [_named(where, values) for where, values in found]
    if not rows:
        raise UserError(f"{path} is empty: write one row for each image, with its file_name, or remove it")
    return rows


def folded(column: str) -> str:
    """A column's name for comparison: letter case, blanks and hyphens do not matter."""
    return re.sub(r"[\s_-]+", "_", column.strip().casefold())


def _named(where: str, values: dict[str, Any]) -> FileRow:
    """The row with its image's name separated: from `file_name`, or the only similar column."""
    column = _file_column(list(values), where)
    file = values.get(column) if column is not None else None
    if column is None or not isinstance(file, str) or not file.strip():
        raise UserError(f"{where} has no file_name: each row must name its image")
    return FileRow(where, file.strip(), {key: value for key, value in values.items() if key != column})


def _file_column(columns: Sequence[str], where: str) -> str | None:
    if "file_name" in columns:
        return "file_name"
    for target in _FILE_COLUMNS:
        found = [column for column in columns if folded(column) == target]
        if len(found) > 1:
            raise UserError(f"{where} has the columns {' and '.join(map(repr, found))}: name one of them file_name")
        if found:
            return found[0]
    return None


# ---- JSON


def _json_lines(path: Path, encoding: str | None) -> Iterator[tuple[str, dict[str, Any]]]:
    for number, line in enumerate(lines_of(read_text(path, encoding)), 1):
        if not line.strip():
            continue
        where = f"line {number} of {path}"
        try:
            value = parse_json(line, where)
        except UserError as error:
            if line.strip()[0] in "[{" and " is not JSON" in str(error):
                raise UserError(f"{error}: write one object a line, or name the file metadata.json") from None
            raise
        if not isinstance(value, dict):
            raise UserError(f"{where} is not a JSON object: write one object a line")
        yield where, value


def _json_value(path: Path, value: Any) -> Iterator[tuple[str, dict[str, Any]]]:
    """Rows of a list of objects, an object of columns, or an object by file name."""
    if isinstance(value, list):
        for number, row in enumerate(value, 1):
            if not isinstance(row, dict):
                raise NotMetadata("it is not a list of objects")
            yield f"entry {number} of {path}", row
        return
    if not isinstance(value, dict):
        raise NotMetadata("it is neither a list nor an object")
    if _file_column(list(value), str(path)) is not None:
        yield from _columns(path, value)
        return
    if {"images", "annotations"} <= value.keys():
        raise NotMetadata("it is in COCO's form: write one object for each image, with its file_name and text")
    for file, row in value.items():
        if not isinstance(row, str | dict):
            raise NotMetadata(f"{shown(file)} is neither a caption nor an object")
        yield f"{shown(file)} in {path}", {"file_name": file, **({"text": row} if isinstance(row, str) else row)}


def _columns(path: Path, value: Mapping[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Rows of an object of columns, each a list, or an object by row as pandas writes it."""
    columns: dict[str, list[Any]] = {}
    for name, column in value.items():
        if not isinstance(column, list | dict):
            raise UserError(
                f"the column {shown(name)} of {path} is not a list: give a list of objects with a file_name"
            )
        columns[name] = list(column.values()) if isinstance(column, dict) else column
    lengths = {len(column) for column in columns.values()}
    if len(lengths) > 1:
        raise UserError(
            f"the columns of {path} have {' and '.join(map(str, sorted(lengths)))} entries: make them equal"
        )
    for number in range(max(lengths, default=0)):
        yield f"row {number + 1} of {path}", {name: column[number] for name, column in columns.items()}


# ---- Parquet


def _parquet(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    try:
        from pyarrow import ArrowException, parquet
    except ImportError:
        raise UserError(
            f"{path} needs a reader of Parquet: pip install pyarrow, save it as metadata.csv, or name it in "
            "data.leave_out"
        ) from None
    try:
        rows = parquet.read_table(path).to_pylist()
    except (ArrowException, OSError, ValueError) as error:
        raise UserError(f"{path} is not a Parquet file: {error}") from None
    for number, row in enumerate(rows, 1):
        yield f"row {number} of {path}", row


# ---- CSV


def _csv(path: Path, encoding: str | None) -> Iterator[tuple[str, dict[str, Any]]]:
    """Numbers stay text, except whole ones written as numbers are, so that labels can be compared with `data.where`."""
    text = read_text(path, encoding)
    skipped = 0
    declared = re.match(r"sep=(.)\r?\n", text)  # spreadsheets write it for each other
    if declared:
        text, skipped = text[declared.end() :], 1
    delimiter = declared.group(1) if declared else _delimiter(text)
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, skipinitialspace=True, strict=True)
    headings: list[str] | None = None
    while True:
        number = reader.line_num + 1 + skipped
        try:
            fields = next(reader, None)
        except csv.Error as error:
            raise UserError(f"line {number} of {path} cannot be read as CSV, {_explained(error)}") from None
        if fields is None:
            return
        if not any(field.strip() for field in fields):
            continue
        if headings is None:
            headings = _headings(fields, f"line {number} of {path}")
        else:
            yield f"line {number} of {path}", _cells(fields, headings, f"line {number} of {path}", delimiter)


def _explained(error: csv.Error) -> str:
    text = str(error)
    if "field larger" in text:
        return f"a field is longer than {csv.field_size_limit():,} characters: is a quotation mark left open?"
    if "unexpected end" in text:
        return "a quotation mark is left open: close it, or write two for one that is part of the text"
    return f"{text}: quote whole fields, and write two quotation marks for one that is part of the text"


def _delimiter(text: str) -> str:
    """The delimiter of the first line with which a column has the images' names; a comma if none does."""
    first = next((line for line in lines_of(text[:65536]) if line.strip()), "")
    found: dict[str, int] = {}
    for delimiter in _DELIMITERS:
        try:
            fields = next(csv.reader([first], delimiter=delimiter, skipinitialspace=True), [])
        except csv.Error:
            continue
        if any(folded(field) in _FILE_COLUMNS for field in fields):
            found[delimiter] = len(fields)
    return max(found, key=lambda delimiter: found[delimiter], default=",")


def _headings(fields: Sequence[str], where: str) -> list[str]:
    headings = [field.strip() for field in fields]
    if len(headings) > 1 and not headings[0] and "index" not in headings:
        headings[0] = "index"  # pandas leaves the heading of its row numbers empty
    if _file_column(headings, where) is None:
        raise UserError(
            f"{where} has no file_name among its headings {', '.join(map(shown, headings[:8]))}: the first line names "
            "the columns, separated by commas, semicolons or tabs"
        )
    for heading in headings:
        if heading and headings.count(heading) > 1:
            raise UserError(f"{where} has the heading {shown(heading)} twice: rename one of them")
    return headings


def _cells(fields: Sequence[str], headings: Sequence[str], where: str, delimiter: str) -> dict[str, Any]:
    """The row's values that are not empty. Raises UserError if one is under no heading."""
    surplus = [field for field in fields[len(headings) :] if field.strip()]
    bare = [field for field, heading in zip(fields, headings, strict=False) if field.strip() and not heading]
    if surplus or bare:
        joined = delimiter.join(fields[1:])
        raise UserError(
            f"{where} has {len(fields)} fields under {sum(map(bool, headings))} headings: if a text holds "
            f'{delimiter!r}, quote it, as in "{shown(joined)[1:-1]}"'
        )
    column = _file_column(headings, where)
    cells = {heading: field.strip() for heading, field in zip(headings, fields, strict=False) if field.strip()}
    return {name: cell if name == column else _number(cell) for name, cell in cells.items()}


def _number(cell: str) -> str | int:
    """A whole number where the text is exactly what Python would write for it: 007 and 1e3 stay texts."""
    return int(cell) if re.fullmatch(rf"0|-?[1-9][0-9]{{0,{_MOST_DIGITS - 1}}}", cell) else cell
