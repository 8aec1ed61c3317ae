"""Scanning a folder of images: its files, their headers, metadata, captions and labels; no pixels are decoded."""

import os
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from hashlib import blake2b
from itertools import chain
from pathlib import Path
from typing import Any

from sfumato.counts import how_many, none_of, of_all
from sfumato.data.buckets import Size, nearest
from sfumato.data.captions import Captions, Choices, captions_of
from sfumato.data.dataset import Blocks, Progress, UnreadableImage
from sfumato.data.folder_config import FolderConfig
from sfumato.data.images_config import ImagesConfig
from sfumato.data.labels import Labels, labels_of
from sfumato.data.left_out import left_out_note, texts_left_out
from sfumato.data.listing import Listing, listing, notes_of
from sfumato.data.listing import left_out as images_left_out
from sfumato.data.matching import common_reason
from sfumato.data.metadata import Metadata, Row, columns_of, disagreements, merged, read_metadata
from sfumato.data.opening import is_image
from sfumato.data.published import annotation_files, only_listed, renamed, with_captions
from sfumato.data.reading import ImageHeader, read_header
from sfumato.data.remarks import sentences_of
from sfumato.data.textfile import shown
from sfumato.data.transforms import LONGEST
from sfumato.errors import UserError

NOT_USED = "are not used: data.most_images"
"""How the note of images beyond `most_images` ends."""
_SCAN_CHUNK = 64  # files a task: handing one to a thread costs about as much as its header
_SCAN_THREADS = 8  # the scan waits for the disk more than it computes


@dataclass(frozen=True)
class Scan:
    """The content of a folder: readable files with their metadata, in order of their relative paths.

    `unreadable` lists (path, reason); `missing` the files that metadata names and the folder lacks; `left_out` (path,
    reason) of text files that are not used and of images that the metadata does not list; `unread_columns` unused
    columns of the metadata; `notes` are sentences for the user. `texts` and `labels` are None if no file has one.
    `captions` are all captions of each file with their weights, the first of which is in `texts`. `metadata` is the
    whole row of each file; `blocks` the files that are stored together, if they are.
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
    blocks: Blocks | None = None
    source: str = ""
    """The path that the user gave, if that is not the folder `root`."""

    @property
    def title(self) -> str:
        """The place of the images, for messages."""
        return self.source or str(self.root)


@dataclass(frozen=True)
class Described:
    """The fields of rows whose images can be read, and sentences on them."""

    labels: Labels
    captions: Captions
    unread: tuple[str, ...]
    notes: tuple[str, ...]


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
    own = listing(root).without(config.leave_out)
    found = own.files
    known = read_metadata(root, found, config.encoding)
    rows, unlisted = _rows(known, found)
    if not rows:
        raise UserError(_nothing(root, known, own, unlisted))
    if config.only is not None:
        rows = only_listed(rows, root, config.only, config.encoding)
    if config.captions_file is not None:
        rows = with_captions(rows, root, config.captions_file, config.encoding)
    lists = annotation_files(root, config.only, config.captions_file, config.label_names)
    rows, beyond = at_most(merged(chosen(rows, config.where)), config.most_images)
    headers, unreadable = _read_headers(config, [row.file for row in rows], progress)
    rows = [row for row in rows if row.file in headers]
    if not rows:
        path, reason = unreadable[0]
        raise UserError(
            f"{none_of(len(unreadable), 'image')} in {root} can be read: the first, {path}, fails with: {reason}"
        )
    notes = []
    if unlisted:
        one, several = (f"{each} not listed in the metadata and" for each in ("image is", "images are"))
        notes.append(how_many(len(unlisted), f"{one} was left out", f"{several} were left out"))
    notes += [f"{beyond:,} of {beyond + len(rows):,} images {NOT_USED}"] if beyond else []
    notes += [*known.notes, *notes_of(own)]
    about = described(config, root, rows, headers, found)
    left_out = texts_left_out(
        found, {*known.files, *about.captions.files, *lists}, known.foreign, [row.file for row in rows]
    )
    notes += [*about.notes, *filter(None, [left_out_note(left_out)])]
    return replace(
        scanned(config, root, rows, headers, about),
        unreadable=tuple(sorted([*unreadable, *images_left_out(own)])),
        missing=known.missing,
        notes=tuple(notes),
        left_out=(*left_out, *((name, "the metadata of its folder does not list it") for name in unlisted)),
    )


def scanned(
    config: ImagesConfig, root: Path, rows: Sequence[Row], headers: Mapping[str, ImageHeader], about: Described
) -> Scan:
    """A scan of described rows, one for each image; what was left out and the notes are the caller's."""
    return Scan(
        root=root,
        files=tuple(row.file for row in rows),
        headers=tuple(headers[row.file] for row in rows),
        texts=about.captions.first(),
        labels=about.labels.numbers,
        classes=about.labels.classes,
        columns=columns_of(rows, config.columns),
        metadata=tuple(row.values for row in rows),
        captions=about.captions.choices,
        unread_columns=about.unread,
    )


def described(
    config: ImagesConfig,
    root: Path,
    rows: Sequence[Row],
    headers: Mapping[str, ImageHeader],
    found: Sequence[str] = (),
    named: Sequence[Row] | None = None,
) -> Described:
    """Labels, captions and remarks of the rows.

    Args:
        config: which columns to read, and the frame.
        root: the folder, for messages and for caption files.
        rows: one for each image.
        headers: of each image, by file.
        found: all files of the folder, among which are caption files.
        named: the rows with the names whose sub-folders are classes, where those are not the files'.

    Raises UserError for columns that no row has, and values that are neither text nor number.
    """
    notes = remarks(headers, config)
    small = sum(room < 1 for room in rooms([headers[row.file] for row in rows], config))
    if small:
        H, W = config.height_width
        frame = f"{H}x{W}" if config.buckets is None else "their bucket"
        some = of_all(small, len(rows), "images is", "images are")
        notes.append(f"{some} smaller than {frame} and {'is' if small == 1 else 'are'} enlarged")
    labels = labels_of(named or rows, config.label_column)
    if config.label_names is not None:
        labels = renamed(labels, root / config.label_names, config.encoding)
    captions = _captions(root, rows, found, config, labels)
    read = (*captions.columns, *(filter(None, [labels.column])), *config.columns)
    notes += [*labels.notes, *captions.notes, *disagreements(rows, (*filter(None, [labels.column]), *config.columns))]
    return Described(labels, captions, _unread(rows, {*read, *config.where}), tuple(notes))


def _captions(root: Path, rows: Sequence[Row], found: Sequence[str], config: ImagesConfig, labels: Labels) -> Captions:
    """The captions as configured. Raises UserError if they should come from labels and there are none."""
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
        reason = common_reason(known.missing, unlisted)
        return (
            f"the metadata of {root} names none of its {len(unlisted)} images: {reason}; "
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
    """Rows in order of their files, and the images that the metadata does not list."""
    images = [name for name in found if is_image(name)]
    named = {row.file for row in known.rows}
    owned = [name for name in images if name not in named and name.startswith(known.owners)]
    passed = set(owned)
    free = [Row(name, {}) for name in images if name not in named and name not in passed]
    # stable: rows of one file (several captions) keep the order of the metadata
    return sorted([*known.rows, *free], key=lambda row: row.file), owned


def chosen(rows: Sequence[Row], where: Mapping[str, object]) -> list[Row]:
    """The rows whose columns have the values of `where`. Raises UserError if a column does not exist or no row fits."""
    for column in where:
        if all(column not in row.values for row in rows):
            raise UserError(f"data.where names the column {column!r}, which is in no row of the metadata")
    fitting = [row for row in rows if all(row.values.get(column) == value for column, value in where.items())]
    if not fitting:
        raise UserError(f"data.where {dict(where)} fits none of the {len(rows)} rows of the metadata: check the values")
    return fitting


def at_most(rows: list[Row], most: int | None) -> tuple[list[Row], int]:
    """The rows of `most` files in their order, and how many files are left out.

    By a random number for each name: a file that is added displaces one other at most.
    """
    files = list(dict.fromkeys(row.file for row in rows))
    if most is None or len(files) <= most:
        return rows, 0
    ranked = sorted(files, key=lambda file: blake2b(os.fsencode(file), digest_size=8).digest())
    kept = set(ranked[:most])
    return [row for row in rows if row.file in kept], len(files) - most


def remarks(headers: Mapping[str, ImageHeader], config: ImagesConfig) -> list[str]:
    """Sentences on how images are changed before training: one for each kind, with an example."""
    notes = sentences_of({name: seen.remark for name, seen in headers.items() if seen.remark})
    made = [name for name, seen in headers.items() if seen.generated]
    if made and len(made) < len(headers):
        some = how_many(len(made), "image was", "images were")
        notes.append(
            f"{some} made by sfumato itself, such as {shown(made[0])}, and used like the others: if that is not "
            "intended, name the folder in data.leave_out"
        )
    frames = frames_of(list(headers.values()), config)
    long = [
        name
        for (name, seen), (H, W) in zip(headers.items(), frames, strict=True)
        if max(seen.upright[1] / seen.upright[0] * H / W, W / H * seen.upright[0] / seen.upright[1]) > LONGEST
    ]
    if long and config.resize == "crop":
        some = how_many(len(long), "image is", "images are")
        notes.append(
            f"{some} over {LONGEST} times as long as the frame and cropped to the middle, such as {shown(long[0])}"
        )
    return notes


def frames_of(headers: Sequence[ImageHeader], config: ImagesConfig) -> list[Size]:
    """The size (H, W) that each image is cropped to."""
    if config.buckets is None:
        return [config.height_width] * len(headers)
    buckets = nearest(config.sizes, [seen.upright for seen in headers])
    return [buckets.of(row) for row in range(len(headers))]


def rooms(headers: Sequence[ImageHeader], config: ImagesConfig) -> list[float]:
    """How many times the side of its frame each image has, on the side where that is least."""
    frames = frames_of(headers, config)
    sides = (zip(seen.upright, frame, strict=True) for seen, frame in zip(headers, frames, strict=True))
    return [min(own / framed for own, framed in each) for each in sides]


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
