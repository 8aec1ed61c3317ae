"""A folder of images in any usual convention: class sub-folders, metadata files, side-car captions, or none of it."""

import math
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from copy import copy
from dataclasses import dataclass, field
from functools import cached_property
from hashlib import blake2b
from itertools import chain
from pathlib import Path
from typing import Any, Literal

import torch
from pydantic import Field, field_validator, model_validator

from sfumato.data.captions import Captions, Choices, captions_of
from sfumato.data.contents import file_hashes
from sfumato.data.dataset import Example, Progress, UnreadableImage
from sfumato.data.labels import Labels, labels_of
from sfumato.data.left_out import left_out_note, texts_left_out
from sfumato.data.listing import Listing, listing, notes_of
from sfumato.data.listing import left_out as images_left_out
from sfumato.data.matching import common_reason
from sfumato.data.metadata import Metadata, Row, columns_of, disagreements, merged, read_metadata
from sfumato.data.opening import is_image
from sfumato.data.reading import MAX_PIXELS, ImageHeader, colour, decode_reduced, read_header
from sfumato.data.textfile import known_encoding
from sfumato.data.transforms import LONGEST, Framing, Pixels
from sfumato.errors import UserError
from sfumato.schema import Schema

_SCAN_CHUNK = 64  # files a task: handing one to a thread costs about as much as its header
_SCAN_THREADS = 8  # the scan waits for the disk more than it computes


class FolderConfig(Schema):
    """Where the images are and how they become (3, H, W); `size` is a side of the square or (H, W)."""

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
    caption_lines: Literal["first", "all", "each"] = "first"
    """Of a caption file: its first line, all of them as one text, or each as a caption of its own."""
    text_column: str = "text"
    captions: dict[str, float] = Field(default_factory=dict)
    """Several columns with captions, each with the weight at which training draws it; instead of `text_column`."""
    encoding: str | None = None
    """Of text files that are neither UTF-8 nor marked, such as cp1252."""
    label_column: str = "label"
    columns: tuple[str, ...] = ()
    leave_out: tuple[str, ...] = ()
    """Sub-folders whose images are not part of the set, and single files."""
    where: dict[str, str | int | float | bool] = Field(default_factory=dict)
    """Only the rows of the metadata whose columns have these values."""

    @field_validator("background")
    @classmethod
    def _known_colour(cls, value: str) -> str:
        colour(value)
        return value

    @field_validator("encoding")
    @classmethod
    def _known_encoding(cls, value: str | None) -> str | None:
        return None if value is None else known_encoding(value)

    @field_validator("captions")
    @classmethod
    def _sensible_weights(cls, value: dict[str, float]) -> dict[str, float]:
        for name, weight in value.items():
            if not (math.isfinite(weight) and weight > 0):
                raise ValueError(f"captions gives {name!r} the weight {weight:g}: give a finite number above 0")
        return value

    @model_validator(mode="after")
    def _sensible(self) -> "FolderConfig":
        if self.captions and (self.text_from == "label" or self.text_column != "text"):
            raise ValueError("captions names the columns with captions: leave text_from and text_column as they are")
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

    `unreadable` lists (path, reason); `missing` the files that metadata names and the folder lacks; `left_out` (path,
    reason) of files of text that nothing reads and of images that the metadata does not list; `unread_columns` those of
    the metadata; `notes` are sentences for the user. `texts` and `labels` are None where no file has one. `captions`
    are all captions of each file with their weights, the first of which is in `texts`. `metadata` is all that stands in
    the row of each file.
    """

    root: Path
    files: tuple[str, ...]
    headers: tuple[ImageHeader, ...]
    texts: tuple[str, ...] | None
    labels: tuple[int, ...] | None
    classes: tuple[str, ...] | None
    columns: dict[str, tuple[Any, ...]] = field(default_factory=dict)
    metadata: tuple[dict[str, Any], ...] = ()
    unreadable: tuple[tuple[str, str], ...] = ()
    missing: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    captions: tuple[Choices, ...] | None = None
    left_out: tuple[tuple[str, str], ...] = ()
    unread_columns: tuple[str, ...] = ()


def scan_folder(config: FolderConfig, progress: Progress | None = None) -> Scan:
    """Lists the folder and reads every image's header, not its pixels.

    A metadata file defines the set below its own folder: images there that it does not list are left out. Captions
    come from it, else from a .txt beside the image; labels from it, else from the first sub-folder if all images
    are in one. Raises UserError if there is nothing to read.
    """
    root = config.path
    if not root.exists():
        raise UserError(f"data path {root} does not exist: give a folder of images")
    if not root.is_dir():
        raise UserError(f"data path {root} is a file: give the folder that holds the images")
    own = _own(listing(root), config)
    found = own.files
    known = read_metadata(root, found, config.encoding)
    rows, unlisted = _rows(known, found)
    if not rows:
        raise UserError(_nothing(root, known, own, unlisted))
    rows = merged(_chosen(rows, config.where))
    headers, unreadable = _read_headers(config, [row.file for row in rows], progress)
    rows = [row for row in rows if row.file in headers]
    if not rows:
        path, reason = unreadable[0]
        raise UserError(
            f"none of the {len(unreadable)} images in {root} can be read: the first, {path}, fails with: {reason}"
        )
    notes = [f"{len(unlisted)} images are not listed in the metadata and were left out"] if unlisted else []
    notes += [*known.notes, *notes_of(own), *_remarks(headers, config)]
    H, W = config.height_width
    small = sum(min(g.width / W, g.height / H) < 1 for g in (headers[row.file] for row in rows))
    if small:
        notes.append(f"{small} of {len(rows)} images are smaller than {H}x{W} and are enlarged")
    labels = labels_of(rows, config.label_column)
    captions = _captions(root, rows, found, config, labels)
    left_out = texts_left_out(found, {*known.files, *captions.files}, known.foreign, [row.file for row in rows])
    read = (*captions.columns, *(filter(None, [labels.column])), *config.columns)
    notes += [*labels.notes, *captions.notes, *disagreements(rows, (*filter(None, [labels.column]), *config.columns))]
    notes += filter(None, [left_out_note(left_out)])
    return Scan(
        root=root,
        files=tuple(row.file for row in rows),
        headers=tuple(headers[row.file] for row in rows),
        texts=captions.first(),
        labels=labels.numbers,
        classes=labels.classes,
        columns=columns_of(rows, config.columns),
        metadata=tuple(row.values for row in rows),
        unreadable=tuple(sorted([*unreadable, *images_left_out(own)])),
        missing=known.missing,
        notes=tuple(notes),
        captions=captions.choices,
        left_out=(*left_out, *((name, "the metadata of its folder does not list it") for name in unlisted)),
        unread_columns=_unread(rows, {*read, *config.where}),
    )


def _captions(root: Path, rows: Sequence[Row], found: Sequence[str], config: FolderConfig, labels: Labels) -> Captions:
    """Those that the configuration asks for. Raises UserError where there are none of that kind."""
    if config.text_from == "caption":
        return captions_of(
            root, rows, found, config.text_column, config.captions, config.caption_lines, config.encoding
        )
    if labels.numbers is None or labels.classes is None:
        raise UserError(f"text_from 'label' needs labels, but {root} has none: use class sub-folders or a label column")
    names = [name.replace("_", " ") for name in labels.classes]
    return Captions(tuple(((names[number], 1.0),) for number in labels.numbers))


def _unread(rows: Sequence[Row], read: set[str]) -> tuple[str, ...]:
    """The columns of the metadata beyond those that are `read`, sorted."""
    columns = {key for row in rows for values in (row.values, *row.further) for key in values}
    return tuple(sorted(columns - read))


def _nothing(root: Path, known: Metadata, own: Listing, unlisted: Sequence[str]) -> str:
    """Why there is no image in the folder."""
    if unlisted:
        told = common_reason(known.missing, unlisted)
        return (
            f"the metadata of {root} names none of its {len(unlisted)} images: {told}; "
            "names are relative to the metadata file"
        )
    named = f", though its metadata names {len(known.missing)} that are missing" if known.missing else ""
    texts = None if known.missing else left_out_note(texts_left_out(own.files, known.files, known.foreign, []))
    there = "; ".join([*notes_of(own), *filter(None, [texts])])
    return (
        f"data path {root} holds no images{named}: expected files such as .png, .jpg or .webp"
        f"{f' ({there})' if there else ''}"
    )


def _rows(known: Metadata, found: Sequence[str]) -> tuple[list[Row], list[str]]:
    """Rows in order of their files, and the images that the metadata passes over."""
    images = [name for name in found if is_image(name)]
    named = {row.file for row in known.rows}
    owned = [name for name in images if name not in named and name.startswith(known.owners)]
    passed = set(owned)
    free = [Row(name, {}) for name in images if name not in named and name not in passed]
    # stable: rows of one file (several captions) keep the order of the metadata
    return sorted([*known.rows, *free], key=lambda row: row.file), owned


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
    """What is not in the folders and files that are left out."""
    aside = tuple(f"{name.rstrip('/')}/" for name in config.leave_out)
    return Listing(
        tuple(name for name in there.files if not f"{name}/".startswith(aside)),
        tuple((name, what) for name, what in there.special if not f"{name}/".startswith(aside)),
        tuple((name, count) for name, count in there.runs if not f"{name}/".startswith(aside)),
    )


def _remarks(headers: Mapping[str, ImageHeader], config: FolderConfig) -> list[str]:
    """Sentences on what is done to images before they are trained on: one a kind, with an example."""
    found: dict[str, list[str]] = {}
    for name, seen in headers.items():
        if seen.remark:
            found.setdefault(seen.remark, []).append(name)
    notes = [f"{_count(names)}: {remark}; the first is {names[0]}" for remark, names in found.items()]
    made = [name for name, seen in headers.items() if seen.generated]
    if made and len(made) < len(headers):
        notes.append(
            f"{_count(made)} made by sfumato itself, trained on like the others: the first is {made[0]}; "
            "name their folders in data.leave_out if that is not meant"
        )
    H, W = config.height_width
    ratio = W / H
    long = [
        name
        for name, seen in headers.items()
        if max(seen.width / seen.height / ratio, ratio * seen.height / seen.width) > LONGEST
    ]
    if long and config.resize == "crop":
        notes.append(f"{_count(long)} longer than {LONGEST} frames, only the middle is used: the first is {long[0]}")
    return notes


def _count(names: Sequence[str]) -> str:
    return "1 image" if len(names) == 1 else f"{len(names)} images"


def _read_headers(
    config: FolderConfig, files: Sequence[str], progress: Progress | None
) -> tuple[dict[str, ImageHeader], list[tuple[str, str]]]:
    unique = list(dict.fromkeys(files))
    good: dict[str, ImageHeader] = {}
    bad: list[tuple[str, str]] = []

    def look(name: str) -> ImageHeader | UnreadableImage:
        try:
            return read_header(config.path / name, config.max_pixels)
        except UnreadableImage as error:
            return error

    with ThreadPoolExecutor(_SCAN_THREADS) as pool:
        chunks = [unique[i : i + _SCAN_CHUNK] for i in range(0, len(unique), _SCAN_CHUNK)]
        looked = chain.from_iterable(pool.map(lambda chunk: [look(name) for name in chunk], chunks))
        for done, (name, result) in enumerate(zip(unique, looked, strict=True), 1):
            if isinstance(result, ImageHeader):
                good[name] = result
            else:
                bad.append((name, result.reason))
            if progress is not None:
                progress(done, len(unique))
    return good, bad


class FolderDataset:
    """Images of a scanned folder, decoded at each reading; see `pixels.keep_decoded` for keeping them.

    Indexing gives the centre crop without flip, `variant` the random crop and flip that the configuration asks for.
    A file that turns out damaged raises UnreadableImage and is noted in `unreadable` as (path, reason).
    """

    def __init__(
        self,
        config: FolderConfig,
        progress: Progress | None = None,
        cache: Path | None = None,
        hashing: Progress | None = None,
    ) -> None:
        """Scans the folder; raises UserError as `scan_folder` does.

        The hashes of its files, which are found when they are asked for, are kept in `cache`; `hashing` is told of the
        progress.
        """
        self.config = config
        self.cache = cache
        self._hashing = hashing
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
        """The example's fields, without reading its image."""
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

    def caption_choices(self) -> tuple[Choices, ...] | None:
        """All captions of each image with their weights."""
        return self.scan.captions

    def labels(self) -> list[int] | None:
        return None if self.scan.labels is None else list(self.scan.labels)

    def label_counts(self) -> dict[str, int] | None:
        """Images per class, by name."""
        if self.scan.labels is None or self.scan.classes is None:
            return None
        return Labels(self.scan.labels, self.scan.classes).counts()

    @cached_property
    def hashes(self) -> dict[str, bytes]:
        """The hash of each file's whole content, by its relative path; read once for all sets made of this one."""
        files = list(dict.fromkeys(self.scan.files))
        found = file_hashes([self.scan.root / file for file in files], self.cache, self._hashing)
        return dict(zip(files, found, strict=True))

    def pixel_key(self) -> str:
        """Hash of what determines the prepared pixels: names and whole content of the files, framing.

        Neither the folder's path nor times of modification enter: a moved, copied or touched folder is still the same.
        """
        framing = self.framing
        digest = blake2b(digest_size=16)
        digest.update(repr((framing.size, framing.resize, framing.crop, framing.filter, framing.background)).encode())
        for name, seen in zip(self.scan.files, self.scan.headers, strict=True):
            # the remark says that pixels are converted, which they were not always
            digest.update(name.encode(errors="surrogateescape") + b"\0" + self.hashes[name] + seen.remark.encode())
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
