"""Lists that published datasets come with: images of a split, names of synsets, captions by image."""

from collections.abc import Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

from sfumato.data.labels import Labels
from sfumato.data.matching import Names, common_reason
from sfumato.data.metadata import Row
from sfumato.data.strict_json import parse_json
from sfumato.data.textfile import lines_of, read_text, shown
from sfumato.errors import UserError

Captions = dict[str, list[str]]


def only_listed(rows: Sequence[Row], root: Path, name: str, encoding: str | None = None) -> list[Row]:
    """The rows whose image a text file names, one a line, as lists of CelebA-HQ and FFHQ do; other columns are ignored.

    Raises UserError if the file cannot be read, or names no image of the set.
    """
    lines = [line.split() for line in lines_of(_text(root / name, encoding, "data.only"))]
    given = [line[0] for line in lines if line]
    files = [row.file for row in rows]
    found = set(Names(root, files).resolve("", given).values())
    if not found:
        raise UserError(f"data.only {name} names none of the images: {common_reason(given, files)}")
    return [row for row in rows if row.file in found]


def with_captions(rows: Sequence[Row], root: Path, name: str, encoding: str | None = None) -> list[Row]:
    """The rows with the captions of a file: COCO's captions_*.json, or lines of objects with image_id and caption.

    An image without captions in it keeps its own. Raises UserError for a file of another form, or of other images.
    """
    path = root / name
    text = _text(path, encoding, "data.captions_file")
    by_image = _by_line(text, path) if path.suffix.casefold() in (".jsonl", ".ndjson") else _of_coco(text, path)
    known = [(row, _found(by_image, row.file)) for row in rows]
    if not any(found for _, found in known):
        raise UserError(
            f"data.captions_file {name} names none of the images: "
            f"{common_reason(list(by_image), [row.file for row in rows])}"
        )
    return [row if not found else Row(row.file, {**row.values, "text": found}, row.where) for row, found in known]


def renamed(labels: Labels, path: Path, encoding: str | None = None) -> Labels:
    """The labels with the names that a file gives them, a label and its names a line: `n01440764 tench, Tinca tinca`.

    The first of several names is used; two classes of one name get their label in brackets. Raises UserError if a
    class is not in the file.
    """
    if labels.classes is None:
        raise UserError(f"data.label_names {path} names classes, but the images have no labels")
    given: dict[str, str] = {}
    for line in lines_of(_text(path, encoding, "data.label_names")):
        label, _, names = line.strip().partition(" ")
        if label:
            given[label] = names.split(",")[0].strip() or label
    missing = [name for name in labels.classes if name not in given]
    if missing:
        raise UserError(
            f"data.label_names {path} has no line for {len(missing)} of {len(labels.classes)} classes, the first is "
            f"{shown(missing[0])}: add one such as {missing[0]} NAME"
        )
    chosen = [given[label] for label in labels.classes]
    pairs = zip(chosen, labels.classes, strict=True)
    unique = [f"{name} ({label})" if chosen.count(name) > 1 else name for name, label in pairs]
    return Labels(labels.numbers, tuple(unique), labels.column, labels.notes)


def _text(path: Path, encoding: str | None, option: str) -> str:
    if not path.is_file():
        raise UserError(f"{option} {path} does not exist: give a file below the data folder")
    return read_text(path, encoding)


def _found(by_image: Mapping[str, list[str]], file: str) -> list[str]:
    path = PurePosixPath(file)
    return next((by_image[name] for name in (file, path.name, path.stem) if name in by_image), [])


def _of_coco(text: str, path: Path) -> Captions:
    content = parse_json(text, str(path))
    try:
        files = {image["id"]: str(image["file_name"]).replace("\\", "/") for image in content["images"]}
        found: Captions = {}
        for one in content["annotations"]:
            found.setdefault(files[one["image_id"]], []).append(_caption(one["caption"], path))
    except (KeyError, TypeError) as error:
        raise UserError(
            f"{path} is not a caption file like COCO's ({type(error).__name__}: {error}): it needs images and "
            "annotations with captions"
        ) from None
    return found


def _by_line(text: str, path: Path) -> Captions:
    """As Localized Narratives of OpenImages: image_id is the file's name without its ending."""
    found: Captions = {}
    for number, line in enumerate(lines_of(text), 1):
        if not line.strip():
            continue
        where = f"line {number} of {path}"
        one: Any = parse_json(line, where)
        if not isinstance(one, dict) or "image_id" not in one or "caption" not in one:
            raise UserError(f"{where} has no image_id and caption")
        found.setdefault(str(one["image_id"]), []).append(_caption(one["caption"], path))
    return found


def _caption(value: Any, path: Path) -> str:
    if not isinstance(value, str):
        raise UserError(f"{path} has the caption {shown(str(value))}, which is not text")
    return value.strip()


def annotation_files(root: Path, *names: str | None) -> tuple[str, ...]:
    """Those of the named files that are below the folder, by their relative paths."""
    return tuple(PurePosixPath(name).as_posix() for name in names if name and (root / name).is_file())
