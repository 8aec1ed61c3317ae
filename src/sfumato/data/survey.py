"""A report on a folder before training: its content, doubtful images, and what is left out."""

import json
from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import PurePosixPath
from typing import Any

import numpy as np
from PIL import Image

from sfumato.counts import how_many
from sfumato.data.buckets import cropped_away
from sfumato.data.captions import all_texts
from sfumato.data.dataset import Progress, UnreadableImage
from sfumato.data.duplicates import difference_hash, groups_of, near_pairs
from sfumato.data.image_dataset import ImageDataset
from sfumato.data.labels import classes_note
from sfumato.data.listing import in_a_note
from sfumato.data.prefetch import Prefetch
from sfumato.data.scan import frames_of, rooms
from sfumato.data.textfile import shown

FLAT = 2.0
"""Standard deviation, out of 255, below which an image counts as one colour."""
BLURRED = 0.64
"""An image counts as blurred where a Laplacian keeps less than this share of its brightness's variance, divided by its
shorter side. Of 300 sharp emoji at 64 and at 128 pixels none came below ten times it; blurred with a Gaussian of a
32nd of the side, half came below."""
BORDERLINE = 1.25
"""Images less than this many times the training size are barely large enough."""
_CHUNK = 32
_SIDES = (32, 64, 128, 256, 512, 1024)


@dataclass(frozen=True)
class Pixels:
    """Statistics of the pixels of one cropped image; `reason` instead if it cannot be decoded."""

    content: bytes = b""
    hash: int = 0
    spread: float = 0.0
    sharpness: float = 1.0
    reason: str | None = None


@dataclass(frozen=True)
class Duplicates:
    """Files of equal (exact) or similar (near) content; `across`: some are held out and some trained on."""

    files: tuple[str, ...]
    exact: bool
    across: bool = False


@dataclass(frozen=True)
class Survey:
    """The report. Counts and lists are of the images that can be read."""

    dataset: ImageDataset
    unreadable: tuple[tuple[str, str], ...]
    duplicates: tuple[Duplicates, ...] = ()
    flat: tuple[str, ...] = ()
    blurred: tuple[str, ...] = ()
    borderline: tuple[str, ...] = ()
    held_out: frozenset[int] = frozenset()
    looked_at_pixels: bool = True

    def captions(self) -> dict[str, str | list[str]]:
        """By file: the caption, or all where there are several; images without one are absent."""
        scan = self.dataset.scan
        found = zip(scan.files, scan.captions or (), strict=False)
        return {file: each[0][0] if len(each) == 1 else [text for text, _ in each] for file, each in found if each}

    def labels(self) -> dict[str, str]:
        """By file: the class's name."""
        scan = self.dataset.scan
        classes = scan.classes or ()
        return {file: classes[number] for file, number in zip(scan.files, scan.labels or (), strict=False)}

    def sizes(self) -> dict[str, int]:
        """A histogram of the images' shorter sides."""
        count: Counter[str] = Counter()
        for seen in self.dataset.scan.headers:
            side = min(seen.width, seen.height)
            count[_range(side)] += 1
        return {name: count[name] for name in map(_range, (0, *_SIDES)) if count[name]}

    def cropped_away(self) -> float:
        """The mean share of an image that is cropped away, in [0, 1]; 0 where images are padded."""
        scan, config = self.dataset.scan, self.dataset.config
        if config.resize == "pad":
            return 0.0
        frames = frames_of(scan.headers, config)
        lost = (cropped_away(seen.upright, frame) for seen, frame in zip(scan.headers, frames, strict=True))
        return sum(lost) / len(scan.headers)

    def buckets(self) -> dict[str, int]:
        """Images by the size (height x width) that they are cropped to."""
        counted = Counter(frames_of(self.dataset.scan.headers, self.dataset.config))
        return {f"{h}x{w}": counted[h, w] for h, w in self.dataset.config.sizes}

    def formats(self) -> dict[str, int]:
        """Images by file ending."""
        endings = (PurePosixPath(name).suffix.lower() or "none" for name in self.dataset.scan.files)
        return dict(Counter(endings).most_common())

    def warnings(self) -> list[str]:
        """Sentences, those of the scan first, without the list of classes."""
        return [*self.file_warnings(), *self.pixel_warnings()]

    def file_warnings(self) -> list[str]:
        """Those of `warnings` that no pixels are needed for."""
        warnings = [note for note in self.dataset.notes if note != classes_note(self.dataset.label_counts() or {})]
        missing = self.dataset.scan.missing
        if missing:
            count = how_many(len(missing), "file named in the metadata does", "files named in the metadata do")
            warnings.append(f"{count} not exist, the first is {shown(missing[0])}")
        unread = self.dataset.scan.unread_columns
        if unread:
            warnings.append(f"columns of the metadata that are not used: {', '.join(map(shown, unread[:12]))}")
        damaged = [(name, why) for name, why in self.unreadable if not in_a_note(name, why)]
        found = _counted("cannot be read", "cannot be read", [name for name, _ in damaged])
        return [*warnings, *(f"{sentence}: {damaged[0][1]}" for sentence in found)]

    def pixel_warnings(self) -> list[str]:
        """Sentences on what only the pixels show: duplicates, and images of doubtful use."""
        warnings: list[str] = []
        exact = [each for each in self.duplicates if each.exact]
        near = [each for each in self.duplicates if not each.exact]
        across = [each for each in self.duplicates if each.across]
        warnings += _counted(
            "is an exact copy of another",
            "are exact copies of another",
            [name for each in exact for name in each.files[1:]],
        )
        warnings += _counted(
            "is a near duplicate of another",
            "are near duplicates of others",
            [name for each in near for name in each.files[1:]],
        )
        if across:
            warnings.append(
                f"{how_many(len(across), 'group of duplicates is', 'groups of duplicates are')} on both sides of the "
                f"held-out split, such as {' and '.join(map(shown, across[0].files[:2]))}: what is measured there is "
                "partly memorised"
            )
        warnings += _counted("is of one colour", "are of one colour", self.flat)
        warnings += _counted("seems blurred", "seem blurred", self.blurred)
        H, W = self.dataset.config.height_width
        warnings += _counted(f"is barely larger than {H}x{W}", f"are barely larger than {H}x{W}", self.borderline)
        return warnings

    def as_json(self) -> dict[str, Any]:
        """The report as one object; the meaning of keys is stable."""
        scan = self.dataset.scan
        return {
            "path": scan.title,
            "images": len(scan.files),
            "sizes": self.sizes(),
            "formats": self.formats(),
            "buckets": self.buckets(),
            "cropped_away": round(self.cropped_away(), 4),
            "captions": self.captions(),
            "labels": self.labels(),
            "classes": self.dataset.label_counts() or {},
            "columns": sorted({key for row in scan.metadata for key in row}),
            "unread_columns": list(scan.unread_columns),
            "missing": list(scan.missing),
            "left_out": [{"file": name, "reason": reason} for name, reason in scan.left_out],
            "unreadable": [{"file": name, "reason": reason} for name, reason in self.unreadable],
            "duplicates": [
                {"files": list(each.files), "kind": "exact" if each.exact else "near", "across_held_out": each.across}
                for each in self.duplicates
            ],
            "one_colour": list(self.flat),
            "blurred": list(self.blurred),
            "borderline_small": list(self.borderline),
            "held_out": sorted(scan.files[row] for row in self.held_out),
            "pixels_looked_at": self.looked_at_pixels,
            "warnings": self.warnings(),
        }

    def dumped(self, **further: Any) -> str:
        """`as_json`, and more keys, as text that can be encoded as UTF-8: file names may contain other bytes."""
        text = json.dumps({**self.as_json(), **further}, indent=1, ensure_ascii=False)
        return text if encodable(text) else json.dumps({**self.as_json(), **further}, indent=1)

    def texts(self) -> list[str]:
        """All captions."""
        return all_texts(self.dataset.scan.captions or ())


def survey(
    dataset: ImageDataset,
    held_out: Collection[int] = (),
    pixels: bool = True,
    progress: Progress | None = None,
    workers: int = 2,
) -> Survey:
    """Surveys a folder's images; `held_out` are the rows held out of training. Without `pixels` none is decoded."""
    scan = dataset.scan
    H, W = dataset.config.height_width
    room = rooms(scan.headers, dataset.config)
    borderline = tuple(name for name, times in zip(scan.files, room, strict=True) if 1 <= times < BORDERLINE)
    if not pixels:
        return Survey(
            dataset,
            tuple(scan.unreadable),
            borderline=borderline,
            held_out=frozenset(held_out),
            looked_at_pixels=False,
        )
    found = _look_at_all(dataset, progress, workers)
    good = [row for row, seen in enumerate(found) if seen.reason is None]
    flat = {row for row in good if found[row].spread < FLAT}
    blurred = [row for row in good if row not in flat and room[row] >= 1 and found[row].sharpness < BLURRED / min(H, W)]
    damaged = [(scan.files[row], seen.reason) for row, seen in enumerate(found) if seen.reason is not None]
    return Survey(
        dataset,
        (*scan.unreadable, *damaged),
        duplicates=tuple(_duplicates(scan.files, found, [row for row in good if row not in flat], set(held_out))),
        flat=tuple(scan.files[row] for row in sorted(flat)),
        blurred=tuple(scan.files[row] for row in blurred),
        borderline=borderline,
        held_out=frozenset(held_out),
    )


def _look_at_all(dataset: ImageDataset, progress: Progress | None, workers: int) -> list[Pixels]:
    """The statistics of each row, in order; read ahead by threads."""
    rows = range(len(dataset))
    chunks = [rows[i : i + _CHUNK] for i in range(0, len(rows), _CHUNK)]
    ahead = Prefetch(lambda n: [_look(dataset, row) for row in chunks[n]], 0, workers, end=len(chunks))
    found: list[Pixels] = []
    try:
        for _ in chunks:
            found += ahead.next()
            if progress is not None:
                progress(len(found), len(rows))
    finally:
        ahead.close()
    return found


def _look(dataset: ImageDataset, row: int) -> Pixels:
    try:
        pixels = dataset[row].image.numpy().transpose(1, 2, 0)
    except UnreadableImage as error:
        return Pixels(reason=error.reason)
    image = Image.fromarray(np.ascontiguousarray(pixels))
    grey = np.asarray(image.convert("L"), np.float32)
    inner = grey[1:-1, 1:-1]
    laplacian = 4 * inner - grey[:-2, 1:-1] - grey[2:, 1:-1] - grey[1:-1, :-2] - grey[1:-1, 2:]
    return Pixels(
        content=blake2b(pixels.tobytes(), digest_size=16).digest(),
        hash=difference_hash(image),
        spread=float(pixels.std((0, 1)).max()),
        sharpness=float(laplacian.var() / max(float(grey.var()), 1e-6)) if inner.size else 1.0,
    )


def _duplicates(
    files: Sequence[str], found: Sequence[Pixels], rows: Sequence[int], held_out: set[int]
) -> list[Duplicates]:
    """Groups of exact duplicates, and of near ones that are not all exact; `rows` excludes images of one colour."""
    by_content: dict[bytes, list[int]] = {}
    for row in rows:
        by_content.setdefault(found[row].content, []).append(row)
    exact = [group for group in by_content.values() if len(group) > 1]
    heads = [group[0] for group in by_content.values()]
    near = [[heads[i] for i in group] for group in groups_of(near_pairs([found[row].hash for row in heads]))]
    made = [(group, True) for group in exact] + [(group, False) for group in near]
    return [
        Duplicates(
            tuple(files[row] for row in group),
            same,
            across=any(row in held_out for row in group) and any(row not in held_out for row in group),
        )
        for group, same in made
    ]


def encodable(text: str) -> bool:
    """Whether a text has no half of a surrogate pair, which represents a byte of a file name that is not UTF-8."""
    return not any("\ud800" <= character <= "\udfff" for character in text)


def _range(side: int) -> str:
    """The part of the histogram that a side falls into."""
    larger = [edge for edge in _SIDES if edge > side]
    smaller = [edge for edge in _SIDES if edge <= side]
    if not smaller:
        return f"below {_SIDES[0]}"
    return f"{smaller[-1]} to {larger[0] - 1}" if larger else f"{_SIDES[-1]} and more"


def _counted(one: str, several: str, names: Sequence[str]) -> list[str]:
    if not names:
        return []
    return [f"{how_many(len(names), f'image {one}', f'images {several}')}, such as {shown(names[0])}"]
