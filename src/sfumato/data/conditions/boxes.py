"""Boxes with categories for a folder of images: from a COCO file or from the metadata, cropped with the image."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from hashlib import blake2b
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from sfumato.conditioning.metadata import LayoutInput
from sfumato.data.conditions.class_names import read_class_names
from sfumato.data.conditions.config import BoxesConfig
from sfumato.data.conditions.open_images import read_boxes
from sfumato.data.image_dataset import ImageDataset
from sfumato.data.places import IMAGES
from sfumato.data.reading import displayed_size
from sfumato.data.strict_json import read_json
from sfumato.data.transforms import Boxes, clip_boxes
from sfumato.errors import UserError

_COCO = {"images", "annotations", "categories"}
_SLACK = 1.5
"""Pixels that a box may reach over the image's border: annotations are rounded."""


@dataclass(frozen=True)
class _Box:
    """One annotation: x, y, width, height, in pixels or (`relative`) as fractions; `where` names it in messages."""

    label: str | int
    values: tuple[float, float, float, float]
    relative: bool
    where: str


class FolderBoxes:
    """The fields `boxes`, a list of [x, y, width, height] in [0, 1], and `categories`, a list of as many numbers."""

    fields = ("boxes", "categories")

    def __init__(self, folder: ImageDataset, config: BoxesConfig) -> None:
        """Reads and checks all boxes. Raises UserError for one outside its image, of negative size or no category."""
        self.folder, self.config = folder, config
        root = folder.scan.root
        csv = config.file is not None and config.file.casefold().endswith(".csv")
        found, damaged = (None, []) if csv else _find_coco(root, config)
        if csv:
            annotated, names = _of_open_images(root / (config.file or ""))
            boxes = {name: _matching(annotated, name) for name in folder.scan.files}
        elif found is not None:
            annotated, names = _read_coco(*found)
            boxes = {name: _matching(annotated, name) for name in folder.scan.files}
        else:
            boxes, names = _from_metadata(folder, config.column), ()
        if not any(boxes.values()):
            source = (
                f"{found[0]} names none of the images" if found else f"no image has {config.column!r} in its metadata"
            )
            source += f" ({damaged[0]})" if damaged else ""
            raise UserError(
                f"the data in {root} has no boxes: {source}; give a COCO file (conditions.boxes.file) or rows such as "
                '{"file_name": "1.png", "boxes": [{"label": "dog", "bbox": [x, y, width, height]}]} in metadata.jsonl'
            )
        if (root / config.classes).is_file():
            names = read_class_names(root / config.classes, folder.config.encoding).names
        if not names:
            boxes, names = _named_by_use(boxes)
        self.names = names
        self.without = sum(not boxes[name] for name in folder.scan.files)
        self._boxes: dict[str, Boxes] = {}
        self._categories: dict[str, list[int]] = {}
        self._sizes: dict[str, tuple[int, int]] = {}
        for name, group in boxes.items():
            self._sizes[name] = size = displayed_size(folder.places.place(name))
            self._boxes[name] = np.array([_relative(box, size) for box in group], np.float64).reshape(-1, 4)
            self._categories[name] = [_category(box, self.names) for box in group]

    @property
    def notes(self) -> tuple[str, ...]:
        """Sentences for the user."""
        images = len(self.folder.scan.files)
        return (f"{self.without} of {images} images have no boxes",) if self.without else ()

    def describe(self) -> LayoutInput:
        """The names for the model's config.yaml."""
        return LayoutInput(names=self.names)

    def entries(self, name: str) -> list[dict[str, Any]]:
        """The boxes of an image as metadata lists them, with their categories' names."""
        found = zip(self._boxes[name].tolist(), self._categories[name], strict=True)
        return [{"label": self.names[category], "box": box} for box, category in found]

    def __call__(self, index: int, seed: int | None) -> dict[str, Any]:
        name = self.folder.scan.files[index]
        height, width = self._sizes[name]
        framed = self.folder.framing_of(name).frame_boxes(self._boxes[name], height, width, seed)
        clipped, kept = clip_boxes(framed, self.config.visible)
        categories = [c for c, keep in zip(self._categories[name], kept, strict=True) if keep]
        return {"boxes": clipped[kept].tolist(), "categories": categories}

    def fingerprint(self) -> str:
        content = [(name, self._boxes[name].tolist(), self._categories[name]) for name in sorted(self._boxes)]
        return blake2b(repr((content, self.names, self.config.visible)).encode(), digest_size=16).hexdigest()


def _of_open_images(path: Path) -> tuple[dict[str, list[_Box]], tuple[str, ...]]:
    """Boxes by the image's name without its ending, and the names of the categories."""
    if not path.is_file():
        raise UserError(f"conditions.boxes.file {path} does not exist: give OpenImages' csv file of boxes")
    found, names = read_boxes(path)
    return {
        image: [_Box(label, values, True, where) for label, values, where in group] for image, group in found.items()
    }, names


def _relative(box: _Box, size: tuple[int, int]) -> tuple[float, float, float, float]:
    """The box as fractions. Raises UserError where it is not inside the image or has a negative size."""
    height, width = size
    x, y, across, down = box.values
    if across < 0 or down < 0:
        raise UserError(f"{box.where} has the size {across:g}x{down:g}: give [x, y, width, height] with sizes above 0")
    wide, high = (1.0, 1.0) if box.relative else (float(width), float(height))
    slack_x, slack_y = _SLACK * wide / width, _SLACK * high / height
    if x < -slack_x or y < -slack_y or x + across > wide + slack_x or y + down > high + slack_y:
        unit = "fractions of it" if box.relative else f"its {width}x{height} pixels (width x height)"
        raise UserError(
            f"{box.where} is [{x:g}, {y:g}, {across:g}, {down:g}] and reaches outside the image, {unit}: "
            "correct it, as [x, y, width, height]"
        )
    return x / wide, y / high, across / wide, down / high


def _category(box: _Box, names: tuple[str, ...]) -> int:
    if isinstance(box.label, str) and box.label in names:
        return names.index(box.label)
    if isinstance(box.label, int) and 0 <= box.label < len(names):
        return box.label
    raise UserError(
        f"{box.where} has the label {box.label!r}, which is not among the {len(names)} categories: "
        f"{', '.join(names[:8])}{', ...' if len(names) > 8 else ''}; add it to classes.txt or correct it"
    )


def _named_by_use(boxes: Mapping[str, list[_Box]]) -> tuple[dict[str, list[_Box]], tuple[str, ...]]:
    """Boxes and the sorted names of their categories if no file lists them: those that occur, numbers included."""
    labels = {box.label for group in boxes.values() for box in group}
    numbers = sorted(label for label in labels if isinstance(label, int))
    ordered: list[str | int] = [*numbers] if len(numbers) == len(labels) else sorted(labels, key=str)
    named = {name: [replace(box, label=str(box.label)) for box in group] for name, group in boxes.items()}
    return named, tuple(dict.fromkeys(map(str, ordered)))


def _from_metadata(folder: ImageDataset, column: str) -> dict[str, list[_Box]]:
    """By file; the column holds a list of {"label": name or number, "bbox" in pixels or "box" in fractions}."""
    found: dict[str, list[_Box]] = {}
    for name, rows in zip(folder.scan.files, folder.scan.metadata, strict=True):
        entries = rows.get(column)
        if entries is None and name in found:  # a further caption of the same image
            continue
        if entries is not None and not isinstance(entries, list):
            raise UserError(f"{column!r} of {name} in the metadata is not a list: give one object for each box")
        found[name] = [_parse(entry, f"box {i} of {name}") for i, entry in enumerate(entries or (), 1)]
    return found


def _parse(entry: Any, where: str) -> _Box:
    example = '{"label": "dog", "bbox": [x, y, width, height]}'
    if not isinstance(entry, Mapping):
        raise UserError(f"{where} is {entry!r}: give an object such as {example}")
    label = entry.get("label", entry.get("category"))
    relative = "box" in entry
    values = entry.get("box" if relative else "bbox")
    if not isinstance(label, str | int) or isinstance(label, bool):
        raise UserError(f"{where} has no label: give an object such as {example}")
    numbers = values if isinstance(values, list) else []
    if len(numbers) != 4 or not all(isinstance(v, int | float) and np.isfinite(v) for v in numbers):
        raise UserError(f"{where} has no four numbers: give an object such as {example}, in pixels ('box': fractions)")
    x, y, across, down = (float(value) for value in numbers)
    return _Box(label, (x, y, across, down), relative, where)


def _find_coco(root: Path, config: BoxesConfig) -> tuple[tuple[Path, dict[str, Any]] | None, list[UserError]]:
    """The configured COCO file, or the only one there, and its content; and errors of JSON files that cannot be
    read."""
    if config.file is not None:
        path = root / config.file
        if not path.is_file():
            raise UserError(f"conditions.boxes.file {path} does not exist: give a COCO json below {root}")
        content = read_json(path)
        return (path, content if isinstance(content, dict) else {}), []
    found: list[tuple[Path, dict[str, Any]]] = []
    damaged: list[UserError] = []
    for path in (*sorted(root.glob("*.json")), *sorted(root.glob("annotations/*.json"))):
        try:
            content = read_json(path)
        except UserError as error:
            damaged.append(error)
            continue
        if isinstance(content, dict) and set(content) >= _COCO:
            found.append((path, content))
    if len(found) > 1:
        named = ", ".join(path.relative_to(root).as_posix() for path, _ in found)
        raise UserError(f"{root} holds several COCO files ({named}): choose one by conditions.boxes.file")
    return (found[0] if found else None), damaged


def _read_coco(path: Path, content: Mapping[str, Any]) -> tuple[dict[str, list[_Box]], tuple[str, ...]]:
    """Boxes by the file's own names of the images, and the categories' names in order of their ids.

    Crowds are left out: their boxes contain no single object.
    """
    try:
        categories = {int(c["id"]): str(c["name"]) for c in content["categories"]}
        files = {image["id"]: str(image["file_name"]).replace("\\", "/") for image in content["images"]}
        entries = [
            (files[a["image_id"]], a["category_id"], a["bbox"]) for a in content["annotations"] if not a.get("iscrowd")
        ]
    except (ValueError, KeyError, TypeError) as error:
        reason = f"{type(error).__name__}: {error}"
        raise UserError(
            f"{path} is not a COCO file of boxes ({reason}): it needs images, annotations, categories"
        ) from None
    names = tuple(categories[number] for number in sorted(categories))
    boxes: dict[str, list[_Box]] = {name: [] for name in files.values()}
    for file, category, values in entries:
        where = f"box {len(boxes[file]) + 1} of {file} in {path}"
        if category not in categories:
            raise UserError(f"{where} has the category {category!r}, which the file does not define: add it there")
        boxes[file].append(_parse({"label": categories[category], "bbox": values}, where))
    return boxes, names


def _matching(annotated: Mapping[str, list[_Box]], name: str) -> list[_Box]:
    """The boxes of an image, which the file may name with or without the images' folder."""
    inner = name.removeprefix(f"{IMAGES}/")
    for known in (name, inner, PurePosixPath(name).name, PurePosixPath(name).stem):
        if known in annotated:
            return annotated[known]
    return []
