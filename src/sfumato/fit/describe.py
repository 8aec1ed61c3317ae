"""The facts of a folder of images, or of shards, from the survey of `sfumato data`."""

import re
import time
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

import numpy as np

from sfumato.conditioning.tokenizer import Texts, fit_tokenizer
from sfumato.data.conditions.boxes import FolderBoxes
from sfumato.data.conditions.config import BoxesConfig, MapsConfig
from sfumato.data.conditions.maps import FolderMaps
from sfumato.data.dataset import Progress, UnreadableImage
from sfumato.data.folder import FolderDataset
from sfumato.data.folder_config import FolderConfig
from sfumato.data.image_dataset import ImageDataset
from sfumato.data.listing import list_files
from sfumato.data.opening import is_image
from sfumato.data.scan import NOT_USED, Scan
from sfumato.data.survey import Survey, survey
from sfumato.data.table import StoredConfig, open_images
from sfumato.fit.facts import DataFacts

LOOKED_AT = 20_000
"""Images whose headers are read for the plan; of a larger folder a random part."""
TEXTS = 20_000
"""Captions that are tokenized at most."""
LONGEST = 4096
SIDED = re.compile(r"\b(left|right|leftwards?|rightwards?|clockwise|counterclockwise|anticlockwise|west|east)\b", re.I)
READ = 24
"""Files that are read to measure the time of one."""


def describe(
    config: StoredConfig, progress: Progress | None = None, cache: Path | None = None
) -> tuple[Survey, DataFacts]:
    """The survey of a folder or of shards, tables or databases, without the pixels, and the facts that a plan needs.

    The index of shards is kept in `cache`. Raises UserError if there is nothing to read, or label maps or boxes are
    wrong.
    """
    if isinstance(config, FolderConfig):
        return _described_folder(config, progress)
    dataset = open_images(config, cache, progress)
    found = survey(dataset, pixels=False)
    return found, replace(facts_of(found), boxes=_has_boxes(dataset))


def _described_folder(config: FolderConfig, progress: Progress | None) -> tuple[Survey, DataFacts]:
    maps = (config.path / MapsConfig().folder).is_dir() and (config.path / MapsConfig().classes).is_file()
    if maps:
        config = config.model_copy(update={"leave_out": (*config.leave_out, MapsConfig().folder, MapsConfig().classes)})
    listed = sum(is_image(name) for name in list_files(config.path)) if config.path.is_dir() else 0
    some = config.model_copy(update={"most_images": LOOKED_AT}) if listed > LOOKED_AT else config
    dataset = FolderDataset(some, progress)
    if listed > LOOKED_AT:
        dataset.scan = _of_some(dataset.scan, listed)
    found = survey(dataset, pixels=False)
    facts = facts_of(found)
    if maps:
        FolderMaps(dataset, MapsConfig())  # complains about maps that are missing or wrong
    boxes = not maps and _has_boxes(dataset)
    whole = listed if config.most_images is None else min(listed, config.most_images)
    return found, replace(facts, maps=maps, boxes=boxes, listed=whole if listed > LOOKED_AT else None)


def _of_some(scan: Scan, listed: int) -> Scan:
    """The scan with a note that it is of a part of the folder, instead of one that the rest is not used."""
    notes = [note for note in scan.notes if not note.endswith(NOT_USED)]
    return replace(scan, notes=(f"the look at the data is of {len(scan.files):,} of {listed:,} images", *notes))


def facts_of(found: Survey) -> DataFacts:
    """The facts of a surveyed folder, maps and boxes not considered."""
    scan = found.dataset.scan
    sides = [min(seen.width, seen.height) for seen in scan.headers]
    texts = list(dict.fromkeys(found.texts()))
    return DataFacts(
        images=len(scan.files),
        side=int(np.quantile(sides, 0.25)) if sides else 0,
        captioned=len(found.captions()),
        captions=len(texts),
        caption_tokens=_tokens(texts),
        classes=dict(found.dataset.label_counts() or {}),
        sided=sided([*texts, *(scan.classes or ())]),
        cropped=found.cropped_away() if scan.headers else 0.0,
    )


def sided(words: Iterable[str]) -> str | None:
    """The first text that speaks of left and right, or that is a single letter or digit; None if there is none."""
    return next((word for word in words if SIDED.search(word) or (len(word) == 1 and word.isalnum())), None)


def reading_seconds(dataset: ImageDataset) -> float:
    """Seconds of reading and resizing one of the folder's images, by some of them."""
    files = dataset.scan.files
    chosen = files[:: max(1, len(files) // READ)][:READ]
    t_start = time.perf_counter()
    for file in chosen:
        try:
            dataset.decode(file)
        except UnreadableImage:
            continue
    return (time.perf_counter() - t_start) / len(chosen)


def _tokens(texts: list[str]) -> int:
    """Tokens that 99 of 100 captions have at most; 0 without captions."""
    if not texts:
        return 0
    counted = sorted(Texts(fit_tokenizer(texts[:TEXTS]), LONGEST).counts(texts[:TEXTS]))
    return int(counted[min(len(counted) - 1, 99 * len(counted) // 100)])


def _has_boxes(dataset: ImageDataset) -> bool:
    """Whether the metadata or a COCO file has boxes. Raises UserError where those are wrong."""
    config = BoxesConfig()
    in_metadata = any(config.column in row for row in dataset.scan.metadata)
    if not in_metadata and not (dataset.scan.root / "annotations").is_dir():
        return False
    FolderBoxes(dataset, config)
    return True
