"""The metadata of a folder: rows by image, and rows without an image."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from difflib import get_close_matches
from pathlib import Path, PurePosixPath
from typing import Any

from sfumato.counts import how_many
from sfumato.data.matching import Names
from sfumato.data.metadata_files import FileRow, NotMetadata, is_metadata, read_rows
from sfumato.data.textfile import shown
from sfumato.errors import UserError


@dataclass(frozen=True)
class Row:
    """An image, by its path relative to the folder, and its metadata.

    `further` are the values of the other rows that name the same image; `where` is the row's place, for messages.
    """

    file: str
    values: dict[str, Any]
    where: str = ""
    further: tuple[dict[str, Any], ...] = ()


@dataclass(frozen=True)
class Metadata:
    """All rows whose image exists, in the order of the files; the folders (path prefixes) that metadata covers.

    `missing` are the names without a file; `foreign` (file, reason) the metadata files that describe something else.
    """

    rows: tuple[Row, ...] = ()
    owners: tuple[str, ...] = ()
    missing: tuple[str, ...] = ()
    files: tuple[str, ...] = ()
    foreign: tuple[tuple[str, str], ...] = ()
    notes: tuple[str, ...] = ()


@dataclass
class _Reading:
    """The results so far while metadata files are read one after the other, the deepest last."""

    rows: dict[str, list[Row]] = field(default_factory=dict)
    owners: list[str] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)
    files: list[str] = field(default_factory=list)
    foreign: list[tuple[str, str]] = field(default_factory=list)
    near: list[tuple[str, str]] = field(default_factory=list)
    replaced: dict[str, list[str]] = field(default_factory=dict)

    def notes(self) -> tuple[str, ...]:
        notes = []
        if self.near:
            name, file = self.near[0]
            notes.append(
                how_many(
                    len(self.near),
                    "name in the metadata is not exactly that of a file, but matches one",
                    "names in the metadata are not exactly those of files, but match one each",
                )
                + f": {shown(name)} is {shown(file)}"
            )
        for name, files in self.replaced.items():
            several = how_many(len(files), "image is", "images are")
            notes.append(f"{several} named by several metadata files, such as {shown(files[0])}: {name} is used")
        return tuple(notes)


def read_metadata(root: Path, found: Sequence[str], encoding: str | None = None) -> Metadata:
    """Reads every metadata file among those `found`.

    If several metadata files name a file, the deepest is used. Raises UserError for a line that cannot be understood
    and for a metadata file without rows.
    """
    reading, names = _Reading(), Names(root, found)
    tables = [name for name in found if is_metadata(PurePosixPath(name).name)]
    for name in sorted(tables, key=lambda name: (name.count("/"), name)):
        try:
            _read_one(root, name, read_rows(root / name, encoding), names, reading)
        except NotMetadata as reason:
            reading.foreign.append((name, str(reason)))
    return Metadata(
        rows=tuple(row for group in reading.rows.values() for row in group),
        owners=tuple(reading.owners),
        missing=tuple(reading.missing),
        files=tuple(reading.files),
        foreign=tuple(reading.foreign),
        notes=reading.notes(),
    )


def _read_one(root: Path, name: str, rows: Sequence[FileRow], names: Names, reading: _Reading) -> None:
    base = PurePosixPath(name).parent
    prefix = "" if str(base) == "." else f"{base}/"
    meant = names.resolve(prefix, [row.file for row in rows])
    if not meant and PurePosixPath(name).suffix.casefold() == ".json":
        raise NotMetadata("it names no image of this folder")
    here: dict[str, list[Row]] = {}
    for row in rows:
        file = meant.get(row.file)
        if file is None:
            reading.missing.append(f"{prefix}{row.file}")
            continue
        here.setdefault(file, []).append(Row(file, row.values, row.where))
    for given, file in meant.items():
        if _exactly(prefix, given) != file:
            reading.near.append((given, file))
    again = [file for file in here if file in reading.rows]
    if again:
        reading.replaced[name] = again
    reading.rows.update(here)
    reading.owners.append(prefix)
    reading.files.append(name)


def _exactly(prefix: str, given: str) -> str:
    return PurePosixPath(prefix, given.replace("\\", "/")).as_posix()


def merged(rows: Iterable[Row]) -> list[Row]:
    """One row for each image: the first one's values, completed from the further ones, which are also kept."""
    groups: dict[str, list[Row]] = {}
    for row in rows:
        groups.setdefault(row.file, []).append(row)
    return [_joined(group) for group in groups.values()]


def _joined(group: Sequence[Row]) -> Row:
    if len(group) == 1:
        return group[0]
    values: dict[str, Any] = {}
    for row in group:
        for key, value in row.values.items():
            if values.get(key) is None:
                values[key] = value
    return replace(group[0], values=values, further=tuple(row.values for row in group[1:]))


def columns_of(rows: Sequence[Row], names: Sequence[str]) -> dict[str, tuple[Any, ...]]:
    """The columns `names`, None where a row lacks one; UserError for a column that no row has."""
    known = sorted({key for row in rows for key in row.values})
    for name in names:
        if name in ("text", "label"):
            raise UserError(
                f"columns lists {name!r}, which is read anyway: use text_column or label_column to choose it"
            )
        if name not in known:
            raise UserError(f"columns lists {name!r}, which is in no row of the metadata: {way_to_column(name, known)}")
    return {name: tuple(row.values.get(name) for row in rows) for name in names}


def way_to_column(name: str, known: Sequence[str]) -> str:
    """The end of a message about a column that does not exist."""
    near = get_close_matches(name, known, 1) or known
    return f"did you mean {near[0]!r}?" if near else "the folder has no metadata.jsonl or metadata.csv"


def disagreements(rows: Sequence[Row], columns: Iterable[str]) -> tuple[str, ...]:
    """Notes on columns in which the rows of one image differ, although only the first value is used."""
    notes = []
    for column in columns:
        differing = [
            row.file
            for row in rows
            if any(more.get(column) not in (None, row.values.get(column)) for more in row.further)
        ]
        if differing:
            notes.append(
                f"the rows of {len(differing)} images, such as {shown(differing[0])}, differ in {column!r}: "
                "the first one is used"
            )
    return tuple(notes)
