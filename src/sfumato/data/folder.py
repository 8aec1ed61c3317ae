"""A folder of pictures in any usual convention: class sub-folders, metadata files, side-car captions, or none of it."""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from copy import copy
from dataclasses import dataclass, field
from hashlib import blake2b
from pathlib import Path
from typing import Any, Literal

import torch
from pydantic import Field, field_validator, model_validator

from sfumato.data.dataset import Example, Progress, UnreadableImage
from sfumato.data.listing import Listing, left_out, listing, notes_of
from sfumato.data.metadata import Label, Row, columns_of, read_metadata
from sfumato.data.opening import is_image
from sfumato.data.reading import MAX_PIXELS, Glance, colour, decode_reduced, glance
from sfumato.data.transforms import LONGEST, Framing, Pixels
from sfumato.errors import UserError
from sfumato.schema import Schema

_SCAN_THREADS = 8  # the scan waits for the disk more than it computes


class FolderConfig(Schema):
    """Where the pictures are and how they become (3, H, W); `size` is a side of the square or (H, W)."""

    kind: Literal["folder"] = "folder"
    path: Path
    size: int | tuple[int, int] = 256
    resize: Literal["crop", "pad"] = "crop"
    crop: Literal["center", "random"] = "center"
    resize_filter: Literal["lanczos", "bicubic"] = "lanczos"
    flip: bool = False
    background: str = "white"
    max_pixels: int = Field(default=MAX_PIXELS, ge=1)
    """Larger images are left out; those that can be read reduced or in parts may have four times as many."""
    text_from: Literal["caption", "label"] = "caption"
    caption_lines: Literal["first", "all"] = "first"
    text_column: str = "text"
    label_column: str = "label"
    columns: tuple[str, ...] = ()
    leave_out: tuple[str, ...] = ()
    """Sub-folders whose pictures are not part of the set."""
    where: dict[str, str | int | float | bool] = Field(default_factory=dict)
    """Only the rows of the metadata whose columns have these values."""

    @field_validator("background")
    @classmethod
    def _known_colour(cls, value: str) -> str:
        colour(value)
        return value

    @model_validator(mode="after")
    def _sensible(self) -> "FolderConfig":
        if min(self.height_width) < 1:
            raise ValueError(f"size {self.size} must be positive")
        if self.resize == "pad" and self.crop == "random":
            raise ValueError("resize 'pad' leaves nothing to crop: choose resize 'crop' for crop 'random'")
        return self

    @property
    def height_width(self) -> tuple[int, int]:
        return (self.size, self.size) if isinstance(self.size, int) else self.size

    def framing(self) -> Framing:
        return Framing(
            size=self.height_width,
            resize=self.resize,
            crop=self.crop,
            flip=self.flip,
            filter=self.resize_filter,
            background=colour(self.background),
        )


@dataclass(frozen=True)
class Scan:
    """What stands in a folder: readable files with what is known of each, in order of their relative paths.

    `unreadable` lists (path, reason); `missing` the files that metadata names and the folder lacks; `notes` are
    sentences for the user. `texts` and `labels` are None where no file has one. `metadata` is all that stands in the
    row of each file.
    """

    root: Path
    files: tuple[str, ...]
    glances: tuple[Glance, ...]
    texts: tuple[str, ...] | None
    labels: tuple[int, ...] | None
    classes: tuple[str, ...] | None
    columns: dict[str, tuple[Any, ...]] = field(default_factory=dict)
    metadata: tuple[dict[str, Any], ...] = ()
    unreadable: tuple[tuple[str, str], ...] = ()
    missing: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()


def scan_folder(config: FolderConfig, progress: Progress | None = None) -> Scan:
    """Lists the folder and reads every picture's header, not its pixels.

    A metadata file defines the set below its own folder: pictures there that it does not list are left out. Captions
    come from it, else from a .txt beside the picture; labels from it, else from the first sub-folder if all pictures
    are in one. Raises UserError if there is nothing to read.
    """
    root = config.path
    if not root.exists():
        raise UserError(f"data path {root} does not exist: give a folder of images")
    if not root.is_dir():
        raise UserError(f"data path {root} is a file: give the folder that holds the images")
    there = listing(root)
    found = there.files
    own = _own(there, config)
    rows, missing, unlisted = _rows(root, own.files)
    if not rows:
        named = f", though its metadata names {len(missing)} that are missing" if missing else ""
        passed = "; ".join(notes_of(own))
        expected = f"expected files such as .png, .jpg or .webp{f' ({passed})' if passed else ''}"
        raise UserError(f"data path {root} holds no images{named}: {expected}")
    rows = _chosen(rows, config.where)
    glances, unreadable = _glance_all(config, [row.file for row in rows], progress)
    rows = [row for row in rows if row.file in glances]
    if not rows:
        path, reason = unreadable[0]
        raise UserError(
            f"none of the {len(unreadable)} images in {root} can be read: the first, {path}, fails with: {reason}"
        )
    notes = [f"{unlisted} images are not listed in the metadata and were left out"] if unlisted else []
    notes += [*notes_of(own), *_remarks(glances, config)]
    H, W = config.height_width
    small = sum(min(g.width / W, g.height / H) < 1 for g in (glances[row.file] for row in rows))
    if small:
        notes.append(f"{small} of {len(rows)} images are smaller than {H}x{W} and are enlarged")
    labels, classes = _labels(rows, config.label_column, notes)
    return Scan(
        root=root,
        files=tuple(row.file for row in rows),
        glances=tuple(glances[row.file] for row in rows),
        texts=_texts(root, rows, found, config, labels, classes, notes),
        labels=labels,
        classes=classes,
        columns=columns_of(rows, config.columns),
        metadata=tuple(row.values for row in rows),
        unreadable=tuple(sorted([*unreadable, *left_out(own)])),
        missing=tuple(missing),
        notes=tuple(notes),
    )


def _rows(root: Path, found: Sequence[str]) -> tuple[list[Row], list[str], int]:
    """Rows in order of their files, the files that metadata names in vain, and how many pictures it passes over."""
    listed, owners, missing = read_metadata(root, found)
    pictures = [name for name in found if is_image(name)]
    named = {row.file for row in listed}
    owned = [name for name in pictures if name not in named and any(name.startswith(owner) for owner in owners)]
    passed = set(owned)
    free = [Row(name, {}) for name in pictures if name not in named and name not in passed]
    # stable: rows of one file (several captions) keep the order of the metadata
    return sorted([*listed, *free], key=lambda row: row.file), missing, len(owned)


def _chosen(rows: Sequence[Row], where: Mapping[str, object]) -> list[Row]:
    """The rows whose columns have the values asked for. Raises UserError where a column or every row is missing."""
    for column in where:
        if all(column not in row.values for row in rows):
            raise UserError(f"data.where names the column {column!r}, which is in no row of the metadata")
    chosen = [row for row in rows if all(row.values.get(column) == value for column, value in where.items())]
    if not chosen:
        raise UserError(f"data.where {dict(where)} fits none of the {len(rows)} rows of the metadata: check the values")
    return chosen


def _own(there: Listing, config: FolderConfig) -> Listing:
    """What is not in the folders that are left out."""
    aside = tuple(f"{folder}/" for folder in config.leave_out)
    return Listing(
        tuple(name for name in there.files if not name.startswith(aside)),
        tuple((name, what) for name, what in there.special if not name.startswith(aside)),
        tuple((name, count) for name, count in there.runs if not f"{name}/".startswith(aside)),
    )


def _remarks(glances: Mapping[str, Glance], config: FolderConfig) -> list[str]:
    """Sentences on what is done to images before they are trained on: one a kind, with an example."""
    found: dict[str, list[str]] = {}
    for name, seen in glances.items():
        if seen.remark:
            found.setdefault(seen.remark, []).append(name)
    notes = [f"{_count(names)}: {remark}; the first is {names[0]}" for remark, names in found.items()]
    made = [name for name, seen in glances.items() if seen.generated]
    if made and len(made) < len(glances):
        notes.append(
            f"{_count(made)} made by sfumato itself, trained on like the others: the first is {made[0]}; "
            "name their folders in data.leave_out if that is not meant"
        )
    H, W = config.height_width
    ratio = W / H
    long = [
        name
        for name, seen in glances.items()
        if max(seen.width / seen.height / ratio, ratio * seen.height / seen.width) > LONGEST
    ]
    if long and config.resize == "crop":
        notes.append(f"{_count(long)} longer than {LONGEST} frames, only the middle is used: the first is {long[0]}")
    return notes


def _count(names: Sequence[str]) -> str:
    return "1 image" if len(names) == 1 else f"{len(names)} images"


def _glance_all(
    config: FolderConfig, files: Sequence[str], progress: Progress | None
) -> tuple[dict[str, Glance], list[tuple[str, str]]]:
    unique = list(dict.fromkeys(files))
    good: dict[str, Glance] = {}
    bad: list[tuple[str, str]] = []

    def look(name: str) -> Glance | UnreadableImage:
        try:
            return glance(config.path / name, config.max_pixels)
        except UnreadableImage as error:
            return error

    with ThreadPoolExecutor(_SCAN_THREADS) as pool:
        for done, (name, result) in enumerate(zip(unique, pool.map(look, unique, chunksize=64), strict=True), 1):
            if isinstance(result, Glance):
                good[name] = result
            else:
                bad.append((name, result.reason))
            if progress is not None:
                progress(done, len(unique))
    return good, bad


def _labels(
    rows: Sequence[Row], column: str, notes: list[str]
) -> tuple[tuple[int, ...] | None, tuple[str, ...] | None]:
    given: list[Label | None] = [row.label(column) for row in rows]
    if all(value is None for value in given):
        given = [row.file.split("/")[0] if "/" in row.file else None for row in rows]
        if any(value is None for value in given) or len(set(given)) < 2:
            return None, None
    if without := sum(value is None for value in given):
        notes.append(f"{without} of {len(rows)} images have no {column}, so the set has no labels")
        return None, None
    if all(isinstance(value, int) for value in given):
        numbers = [int(value) for value in given if value is not None]
        if min(numbers) < 0:
            raise UserError(
                f"label {min(numbers)} in the metadata is negative: count classes from 0, or give their names"
            )
        return tuple(numbers), tuple(str(i) for i in range(max(numbers) + 1))
    names = [str(value) for value in given]
    classes = tuple(sorted(set(names)))
    number = {name: i for i, name in enumerate(classes)}
    return tuple(number[name] for name in names), classes


def _texts(
    root: Path,
    rows: Sequence[Row],
    found: Sequence[str],
    config: FolderConfig,
    labels: tuple[int, ...] | None,
    classes: tuple[str, ...] | None,
    notes: list[str],
) -> tuple[str, ...] | None:
    if config.text_from == "label":
        if labels is None or classes is None:
            raise UserError(
                f"text_from 'label' needs labels, but {root} has none: use class sub-folders or a label column"
            )
        return tuple(classes[label].replace("_", " ") for label in labels)
    present = set(found)
    texts = [_text(root, row, present, config) for row in rows]
    without = sum(text is None for text in texts)
    if without == len(texts):
        if config.text_column != "text":
            raise UserError(
                f"text_column {config.text_column!r} is in no row of the metadata of {root}: name another column"
            )
        return None
    if without:
        notes.append(f"{without} of {len(rows)} images have no caption and get an empty one")
    return tuple(text or "" for text in texts)


def _text(root: Path, row: Row, present: set[str], config: FolderConfig) -> str | None:
    given = row.values.get(config.text_column)
    if given is not None:
        return str(given).strip()
    beside = Path(row.file).with_suffix(".txt").as_posix()
    if beside not in present:
        return None
    text = (root / beside).read_text(encoding="utf-8-sig", errors="replace").strip()
    return text.split("\n", 1)[0].strip() if config.caption_lines == "first" else text


class FolderDataset:
    """Pictures of a scanned folder, decoded at each reading; see `pixels.keep_decoded` for keeping them.

    Indexing gives the centre crop without flip, `variant` the random crop and flip that the configuration asks for.
    A file that turns out damaged raises UnreadableImage and is noted in `unreadable` as (path, reason).
    """

    def __init__(self, config: FolderConfig, progress: Progress | None = None) -> None:
        """Scans the folder; raises UserError as `scan_folder` does."""
        self.config = config
        self.scan = scan_folder(config, progress)
        self.framing = config.framing()
        self._read: Callable[[str], Pixels] = self.decode
        self._damaged: dict[str, str] = {}

    @property
    def classes(self) -> tuple[str, ...] | None:
        return self.scan.classes

    @property
    def fields(self) -> tuple[str, ...]:
        scan = self.scan
        known = [name for name, has in (("text", scan.texts), ("label", scan.labels)) if has is not None]
        return (*known, *scan.columns)

    @property
    def unreadable(self) -> list[tuple[str, str]]:
        """(path, reason) of every file found damaged so far, by the scan or on reading."""
        return [*self.scan.unreadable, *sorted(self._damaged.copy().items())]

    @property
    def notes(self) -> tuple[str, ...]:
        """Sentences about the folder that the user should see."""
        return self.scan.notes

    def __len__(self) -> int:
        return len(self.scan.files)

    def __getitem__(self, index: int) -> Example:
        return self._finish(self._prepared(index), index, None)

    def variant(self, index: int, seed: int) -> Example:
        return self._finish(self._prepared(index), index, seed)

    def name(self, index: int) -> str:
        """The file's path relative to the folder."""
        return self.scan.files[index]

    def describe(self, index: int) -> dict[str, Any]:
        """The example's fields, without reading its picture."""
        scan = self.scan
        fields: dict[str, Any] = {}
        if scan.texts is not None:
            fields["text"] = scan.texts[index]
        if scan.labels is not None:
            fields["label"] = scan.labels[index]
        return fields | {name: values[index] for name, values in scan.columns.items()}

    def decode(self, file: str) -> Pixels:
        """The file decoded and resized, before any random crop; what the pixel cache keeps."""
        path = self.scan.root / file
        H, W = self.framing.size
        try:
            # twice the size leaves the resize enough to filter after a JPEG's reduced decoding
            read = decode_reduced(path, self.framing.background, (2 * H, 2 * W), self.config.max_pixels)
            return self.framing.prepare(read.image, read.size)
        except UnreadableImage as error:
            raise UnreadableImage(file, error.reason) from error
        except Exception as error:
            error.add_note(f"while reading {path}")
            raise

    def reading(self, read: Callable[[str], Pixels], damaged: Mapping[str, str]) -> "FolderDataset":
        """The same set with another way from a file's relative path to `decode`'s result."""
        other = copy(self)
        other._read = read
        other._damaged = {**self._damaged, **damaged}
        return other

    def _prepared(self, index: int) -> Pixels:
        try:
            return self._read(self.scan.files[index])
        except UnreadableImage as error:
            self._damaged[error.path] = error.reason
            raise

    def _finish(self, pixels: Pixels, index: int, seed: int | None) -> Example:
        """The example made of prepared pixels."""
        # a copy: mirrored arrays have negative strides, which torch refuses, and cached ones are read-only
        return Example(torch.from_numpy(self.framing.finish(pixels, seed).copy()), self.describe(index))

    def captions(self) -> list[str] | None:
        return None if self.scan.texts is None else list(self.scan.texts)

    def labels(self) -> list[int] | None:
        return None if self.scan.labels is None else list(self.scan.labels)

    def label_counts(self) -> dict[str, int] | None:
        """Pictures per class, by name."""
        if self.scan.labels is None or self.scan.classes is None:
            return None
        counts = Counter(self.scan.labels)
        return {name: counts[i] for i, name in enumerate(self.scan.classes)}

    def pixel_key(self) -> str:
        """Hash of what determines the prepared pixels: names, sizes, first and last 4096 bytes of the files, framing.

        Times of modification do not enter, so a copied or touched folder is still the same.
        """
        framing = self.framing
        digest = blake2b(digest_size=16)
        digest.update(repr((framing.size, framing.resize, framing.crop, framing.filter, framing.background)).encode())
        for name, seen in zip(self.scan.files, self.scan.glances, strict=True):
            # the remark says that pixels are converted, which they were not always
            digest.update(name.encode(errors="surrogateescape") + b"\0" + seen.digest + seen.remark.encode())
        return digest.hexdigest()

    def fingerprint(self) -> str:
        """Hash of the pixels' key, the flip and all fields."""
        scan = self.scan
        fields = (
            self.pixel_key(),
            self.framing.flip,
            scan.texts,
            scan.labels,
            scan.classes,
            sorted(scan.columns.items()),
        )
        return blake2b(repr(fields).encode(errors="surrogateescape"), digest_size=16).hexdigest()
