"""Writing shards: the images of a set with their captions, labels and tables, in tar files of equal numbers."""

import io
import json
import tarfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path, PurePosixPath
from typing import Any

from sfumato.checkpoint import replacing, write_text
from sfumato.data.conditions.boxes import FolderBoxes
from sfumato.data.conditions.config import ConditionsConfig
from sfumato.data.conditions.maps import FolderMaps
from sfumato.data.dataset import Progress
from sfumato.data.image_dataset import ImageDataset
from sfumato.data.opening import is_image
from sfumato.data.order import order_of
from sfumato.data.packed import ImageFile
from sfumato.data.shards.form import ENDING
from sfumato.errors import UserError
from sfumato.plain_json import to_json

PLAN = "shards.json"
"""The file that describes the shards of a folder, and by which interrupted writing resumes."""
CLASSES = "classes.txt"
_SEED = 0


@dataclass(frozen=True)
class Written:
    """The numbers of shards and images, and (image, reason) of those that could not be copied."""

    shards: int
    images: int
    lost: tuple[tuple[str, str], ...] = ()


def write_shards(
    dataset: ImageDataset,
    out: Path,
    per_shard: int = 1000,
    in_order: bool = False,
    conditions: ConditionsConfig | None = None,
    progress: Progress | None = None,
) -> Written:
    """Writes `out`/000000.tar and so on: files as they are, not decoded; each shard is complete or absent.

    Args:
        dataset: the images.
        out: a folder, empty or with some of the same shards, which are kept.
        per_shard: images in each shard, but for the last.
        in_order: keep the order of the set; else it is shuffled, so that one shard holds images of all classes.
        conditions: maps and boxes to include.
        progress: called with (done, total) images.

    Raises UserError if `out` holds shards of another set or plan, or the disk is full.
    """
    members = _Members(dataset, conditions or ConditionsConfig())
    n = len(dataset)
    row_at = (lambda position: position) if in_order else order_of(_SEED, dataset)
    rows = [row_at(position) for position in range(n)]
    groups = [rows[start : start + per_shard] for start in range(0, n, per_shard)]
    plan = {"format": 1, "images": n, "per_shard": per_shard, "in_order": in_order, "source": _source_key(dataset)}
    _claim(out, plan | {"with": sorted(members.kinds)})
    if members.names and not (out / CLASSES).exists():
        write_text(out / CLASSES, "".join(f"{name}\n" for name in members.names))
    lost: list[tuple[str, str]] = []
    done = 0
    for number, group in enumerate(groups):
        path = out / f"{number:06d}{ENDING}"
        if not path.exists():
            with replacing(path) as draft:
                lost += _write(draft, number * per_shard, group, members)
        done += len(group)
        if progress is not None:
            progress(done, n)
    return Written(len(groups), n - len(lost), tuple(lost))


class _Members:
    """The files stored for each row: (ending, bytes)."""

    def __init__(self, dataset: ImageDataset, conditions: ConditionsConfig) -> None:
        self.dataset = dataset
        self.maps: dict[str, ImageFile] = {}
        self.boxes: FolderBoxes | None = None
        self.kinds: dict[str, str] = {}
        self.names: tuple[str, ...] = ()
        if conditions.map is not None:
            self.names = FolderMaps(dataset, conditions.map).described_lines()
            self.maps = dataset.places.companions(dataset.scan.files, conditions.map.folder)
            self.kinds["maps"] = conditions.map.folder
        if conditions.boxes is not None:
            self.boxes = FolderBoxes(dataset, conditions.boxes)
            self.names = self.names or self.boxes.names
            self.kinds["boxes"] = conditions.boxes.column

    def of(self, row: int) -> Iterator[tuple[str, bytes]]:
        scan = self.dataset.scan
        name = scan.files[row]
        yield _ending(name), _bytes(self.dataset.places.place(name))
        captions = () if scan.captions is None else scan.captions[row]
        values: dict[str, Any] = dict(scan.metadata[row])
        if len(captions) == 1 and not self.dataset.config.captions:
            yield "txt", captions[0][0].encode()
            values.pop("text", None)
        elif captions and not self.dataset.config.captions:
            values["text"] = [text for text, _ in captions]
        if scan.labels is not None and scan.classes is not None:
            yield "cls", str(scan.labels[row]).encode()
            values["label"] = scan.classes[scan.labels[row]]
        if self.boxes is not None:
            values["boxes"] = self.boxes.entries(name)
        if values:
            yield "json", to_json(values, ensure_ascii=False).encode("utf-8", "backslashreplace")
        if name in self.maps:
            yield f"maps.{_ending(self.maps[name].name)}", _bytes(self.maps[name])


def _write(path: Path, first: int, rows: Sequence[int], members: _Members) -> list[tuple[str, str]]:
    """Writes one shard; returns (image, reason) of those that could not be read."""
    lost: list[tuple[str, str]] = []
    with tarfile.open(path, "w", format=tarfile.USTAR_FORMAT) as tar:
        for offset, row in enumerate(rows):
            try:
                stored = list(members.of(row))
            except OSError as error:
                lost.append((members.dataset.name(row), error.strerror or str(error)))
                continue
            for ending, content in stored:
                about = tarfile.TarInfo(f"{first + offset:09d}.{ending}")  # no dates and owners: the same bytes always
                about.size = len(content)
                tar.addfile(about, io.BytesIO(content))
    return lost


def _claim(out: Path, plan: dict[str, Any]) -> None:
    """Notes the plan in the folder. Raises UserError if it holds shards of another one."""
    file = out / PLAN
    if file.exists():
        try:
            before = json.loads(file.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            before = None
        if before != plan:
            raise UserError(
                f"--out {str(out)!r} holds shards of other images or settings: give another folder, or remove it"
            )
        return
    write_text(file, to_json(plan, indent=1) + "\n")


def _source_key(dataset: ImageDataset) -> str:
    """Hash of what the scan knows of the images; their pixels are not read for it."""
    scan = dataset.scan
    facts = (scan.files, scan.headers, scan.captions, scan.labels, scan.classes, scan.metadata)
    return blake2b(repr(facts).encode(errors="surrogateescape"), digest_size=16).hexdigest()


def _ending(name: str) -> str:
    return PurePosixPath(name).suffix.lower().removeprefix(".") if is_image(name) else "png"


def _bytes(file: ImageFile) -> bytes:
    with file.open("rb") as stream:
        return stream.read()
