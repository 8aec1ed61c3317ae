"""Opening the data of a run: the training part, the held-out part, and messages for the user about both."""

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pydantic import Field

from sfumato.checkpoint import write_text
from sfumato.conditioning.metadata import ConditioningMetadata
from sfumato.counts import how_many
from sfumato.data.buckets import described_buckets
from sfumato.data.conditions.config import ConditionsConfig
from sfumato.data.dataset import Dataset, Progress, buckets_of
from sfumato.data.image_dataset import ImageDataset
from sfumato.data.leftovers import remove_leftovers
from sfumato.data.pixels import BUDGET
from sfumato.data.split import held_out_rows, split
from sfumato.data.survey import survey
from sfumato.data.table import DataConfig, open_dataset
from sfumato.data.textfile import shown
from sfumato.data.toyworld.dataset import ToyWorldConfig
from sfumato.errors import UserError
from sfumato.schema import Schema
from sfumato.training.conditions import data_config_for, with_fields

TOY_HELD_OUT = 1024
DESCRIPTION = "data.json"
"""The file in a run's folder that describes its data, as `sfumato data --json` does."""
MOST_NAMED = 12
"""At most this many columns are listed by name in a message."""
ON_TRAINING = "measured_on_training_images"
"""A key that is true in every record of the log whose numbers were measured on training images."""


class HeldOut(Schema):
    """Examples held out of training: a share (below 1) or a number. `by` keeps examples with the same value of a column
    (text, label, or one of data.columns) on one side; if the data has no text or label, each image is its own group.
    At least one of two images is held out. The toy world has its own held-out compositions instead."""

    amount: int | float = Field(0.02, ge=0)
    by: str | None = None
    seed: int = 0


@dataclass(frozen=True)
class RunData:
    """The two parts of a dataset, and the metadata of its conditions."""

    training: Dataset
    held_out: Dataset | None
    conditioning_metadata: ConditioningMetadata = field(default_factory=ConditioningMetadata)

    @property
    def measured(self) -> Dataset:
        """The images for previews and metrics: the held-out ones, or training images if there are none."""
        return self.training if self.held_out is None else self.held_out

    @property
    def about_measured(self) -> dict[str, bool]:
        """Added to each record of metrics in the log: whether they were measured on training images, see
        ON_TRAINING."""
        return {ON_TRAINING: True} if self.held_out is None else {}


def height_width(config: DataConfig) -> tuple[int, int]:
    """(H, W) of the images of a configuration."""
    size = config.size
    return (size, size) if isinstance(size, int) else size


def sizes_of(config: DataConfig) -> tuple[tuple[int, int], ...]:
    """All sizes (H, W) that the images of a configuration may have."""
    return (height_width(config),) if isinstance(config, ToyWorldConfig) else config.sizes


def trained_sizes(source: object) -> tuple[tuple[int, int], ...]:
    """The sizes (H, W) of the images, where they have several."""
    buckets = buckets_of(source)
    return () if buckets is None else buckets.used


def check_step(config: DataConfig, factor: int, described: str) -> None:
    """Raises ValueError if the step of buckets is not a multiple of a network's factor, which `described` names."""
    if not isinstance(config, ToyWorldConfig) and config.buckets is not None and config.buckets.step % factor:
        raise ValueError(f"data.buckets.step {config.buckets.step} is not a multiple of {described}: change either")


def check_one_size(config: DataConfig, what: str) -> None:
    """Raises ValueError for images of several sizes where `what` needs one."""
    if not isinstance(config, ToyWorldConfig) and config.buckets is not None:
        raise ValueError(f"data.buckets gives images of several sizes, and {what} needs one: leave it out")


def open_data(
    config: DataConfig,
    held_out: HeldOut,
    folder: Path,
    cache: Path,
    say: Callable[[str], None],
    progress: Callable[[str], Progress],
    conditions: ConditionsConfig | None = None,
) -> RunData:
    """Opens the data; lists files that cannot be read in `folder`/unreadable.txt and reports them.

    `progress(title)` returns a callable of (done, total). `conditions` adds the fields of maps and boxes. Raises
    UserError if there is nothing to read, or maps or boxes are wrong.
    """
    conditions = conditions or ConditionsConfig()
    remove_leftovers(cache)
    config = data_config_for(config, conditions)
    if isinstance(config, ToyWorldConfig):
        aside = config.model_copy(update={"split": "held-out", "length": min(TOY_HELD_OUT, config.length)})
        (training, metadata, _), (held, _, _) = (with_fields(world.build(), conditions) for world in (config, aside))
        return RunData(training, held, metadata)
    dataset = open_dataset(
        config,
        cache,
        scanning=progress("scanning"),
        hashing=progress("hashing"),
        decoding=progress("decoding"),
        log=say,
    )
    assert isinstance(dataset, ImageDataset)
    for note in dataset.notes:
        say(note)
    _report_losses(dataset, folder, say, conditions)
    groups = groups_of(dataset, held_out.by, say)
    _describe(dataset, held_out, groups, folder, say, progress)
    complete, metadata, notes = with_fields(dataset, conditions)
    for note in notes:
        say(note)
    training, aside_part = split(complete, held_out.amount, held_out.seed, groups)
    if (buckets := buckets_of(training)) is not None:
        say(described_buckets(buckets))
    if not len(aside_part):
        why = _why_none(held_out, groups)
        say(f"nothing is held out ({why}): previews and metrics use training images")
    return RunData(training, aside_part if len(aside_part) else None, metadata)


def _why_none(held_out: HeldOut, groups: Sequence[Hashable] | None) -> str:
    if held_out.amount == 0:
        return "held_out.amount is 0"
    return "there is one image" if groups is None or len(groups) == 1 else f"all images have one {held_out.by}"


def _report_losses(
    dataset: ImageDataset, folder: Path, say: Callable[[str], None], conditions: ConditionsConfig
) -> None:
    bad = dataset.unreadable
    if bad:
        write_text(folder / "unreadable.txt", "".join(f"{path}\t{reason}\n" for path, reason in bad))
        count = how_many(len(bad), "file cannot be read and is left out", "files cannot be read and are left out")
        say(f"{count}; listed in {folder / 'unreadable.txt'}")
    if dataset.scan.missing:
        first, there = dataset.scan.missing[0], dataset.scan.files[0]
        count = how_many(len(dataset.scan.missing), "file named in the metadata does", "files named in the metadata do")
        say(f"{count} not exist, the first is {first}; the folder contains files such as {shown(there)}")
    used = {conditions.boxes.column} if conditions.boxes is not None else set()
    unread = [shown(name) for name in dataset.scan.unread_columns if name not in used]
    if unread:
        say(
            f"columns of the metadata that are not used: {', '.join(unread[:MOST_NAMED])}"
            + (f" and {len(unread) - MOST_NAMED} more" if len(unread) > MOST_NAMED else "")
        )
    read = len(dataset) - (len(bad) - len(dataset.scan.unreadable))  # damaged ones keep their rows
    say(f"{how_many(read, 'image')} of {dataset.scan.title}, fields: {', '.join(dataset.fields) or 'none'}")


def split_rows(
    dataset: ImageDataset, held_out: HeldOut, groups: Sequence[Hashable] | None
) -> tuple[Sequence[int], Sequence[int]]:
    """(training rows, rows held out) of a folder, as a training with these settings splits it."""
    training, aside = held_out_rows(len(dataset), held_out.amount, held_out.seed, groups)
    return training.tolist(), aside.tolist()


def _describe(
    dataset: ImageDataset,
    held_out: HeldOut,
    groups: Sequence[Hashable] | None,
    folder: Path,
    say: Callable[[str], None],
    progress: Callable[[str], Progress],
) -> None:
    """Writes the survey of `sfumato data` to `folder`/data.json, once per run, and reports duplicates.

    Pixels are looked at only if they fit into the cache: larger sets would have to be decoded just for this.
    """
    file = folder / DESCRIPTION
    if file.exists():
        return
    H, W = dataset.config.height_width
    fits = 3 * H * W * len(dataset) <= BUDGET
    found = survey(dataset, split_rows(dataset, held_out, groups)[1], fits, progress("looking for duplicates"))
    write_text(file, found.dumped() + "\n")
    for warning in found.pixel_warnings():
        say(warning)


def groups_of(dataset: ImageDataset, by: str | None, say: Callable[[str], None]) -> Sequence[Hashable] | None:
    """The group of each example under `HeldOut.by`; None, with a message, if it is text or label and the data has none.

    Raises UserError for any other field that the data lacks.
    """
    if by is None:
        return None
    if by in ("text", "label") and by not in dataset.fields:
        say(f"held_out.by is {by!r}, but the images have no {by}: images are held out one by one")
        return None
    if by not in dataset.fields:
        raise UserError(
            f"held_out.by {by!r} is not a field of the data, which has {', '.join(dataset.fields) or 'none'}; "
            "name further columns in data.columns"
        )
    return [_hashable(dataset.describe(i)[by]) for i in range(len(dataset))]


def _hashable(value: Any) -> Hashable:
    return tuple(value) if isinstance(value, list) else value
