"""The subject of an evaluation: a model's samples, or a folder of images. Images come in batches and are not stored."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

import torch
from torch import Tensor

from sfumato.cards.reference import chosen_rows
from sfumato.data.dataset import Dataset
from sfumato.data.image_dataset import ImageDataset
from sfumato.data.loader import sweep
from sfumato.errors import UserError
from sfumato.images import to_uint8
from sfumato.model import LatentDiffusion
from sfumato.pipeline import pipeline
from sfumato.pipeline.request import SampleRequest

LabelPolicy = Literal["data", "balanced"]


@dataclass(frozen=True)
class Sampled:
    """A batch: images uint8 (B, 3, H, W), and the texts and labels they were generated from, if any."""

    images: Tensor
    text: list[str] | None = None
    label: list[int] | None = None


class Subject(Protocol):
    """A numbered set of images: the same number is always the same image."""

    @property
    def count(self) -> int: ...

    @property
    def classes(self) -> Sequence[str] | None: ...

    @property
    def fields(self) -> Sequence[str]:
        """The fields of every image: text, label."""

    def batches(self, batch: int) -> Iterator[Sampled]:
        """All images in order."""

    def images(self, numbers: Sequence[int]) -> Tensor:
        """The images with these numbers, uint8 (N, 3, H, W)."""

    def describe(self) -> dict[str, Any]:
        """Kind, path and digest of the subject."""

    def sampling(self) -> dict[str, Any]:
        """How the images were generated."""


@dataclass(frozen=True)
class SampleConditions:
    """The conditions of n samples; None if the model is not conditioned on the field."""

    text: list[str] | None = None
    label: list[int] | None = None


def sample_conditions(
    model: LatentDiffusion, dataset: Dataset, n: int, labels: LabelPolicy = "data"
) -> SampleConditions:
    """Conditions of random rows of the data, every row once before any repeats.

    `labels` "balanced" uses every class equally often instead. Raises UserError if the model is conditioned on a field
    that the data lacks, or that an evaluation cannot provide.
    """
    second = model.second
    if second is None:
        raise UserError("this model is an autoencoder only: evaluate it with sfumato evaluate-autoencoder")
    reads = () if second.conditioner is None else second.conditioner.reads
    foreign = [name for name in reads if name not in ("text", "label")]
    if foreign:
        raise UserError(
            f"this model is conditioned on {foreign[0]}: generate its images yourself and evaluate their folder"
        )
    missing = [name for name in reads if name not in dataset.fields and not (name == "label" and labels == "balanced")]
    if missing:
        raise UserError(
            f"this model is conditioned on {missing[0]}, but the data has the fields "
            f"{', '.join(dataset.fields) or 'none'}"
            + (": give --labels balanced" if missing[0] == "label" else ": add captions, see docs/data.md")
        )
    rows = chosen_rows(dataset, None)
    fields = [_fields(dataset, rows[i % len(rows)]) for i in range(n)] if reads else []
    text = [str(known["text"]) for known in fields] if "text" in reads else None
    label = None
    if "label" in reads and labels == "balanced":
        known_classes = model.config.classes_seen or range(max(1, len(model.config.classes or ())))
        label = [known_classes[i % len(known_classes)] for i in range(n)]
    elif "label" in reads:
        numbers = _numbers_of(model, dataset)
        label = [numbers.get(int(known["label"]), int(known["label"])) for known in fields]
    return SampleConditions(text, label)


def _numbers_of(model: LatentDiffusion, dataset: Dataset) -> dict[int, int]:
    """The model's class number for each class number of the data, matched by name: a folder numbers its own classes.

    Empty if either has no class names. Raises UserError for a class that is not among the model's.
    """
    ours, theirs = model.config.classes, dataset.classes
    if ours is None or theirs is None or ours == theirs:
        return {}
    unknown = [name for name in theirs if name not in ours]
    if unknown:
        raise UserError(
            f"the data has the class {unknown[0]!r}, which this model was not trained on; its classes are "
            + ", ".join(ours[:12])
            + (", ..." if len(ours) > 12 else "")
        )
    return {number: ours.index(name) for number, name in enumerate(theirs)}


def _fields(dataset: Dataset, row: int) -> dict[str, Any]:
    """The row's fields, without decoding the image in a folder."""
    return dataset.describe(row) if isinstance(dataset, ImageDataset) else dataset[row].fields


@dataclass(frozen=True)
class ModelSubject:
    """A model's samples; number i has the seed `seed` + i.

    `options` are fields of a `SampleRequest`; `sampling_settings` is how the card reports them.
    """

    model: LatentDiffusion
    path: str
    count: int
    conditions: SampleConditions
    seed: int
    options: dict[str, Any] = field(default_factory=dict)
    sampling_settings: dict[str, Any] = field(default_factory=dict)

    @property
    def classes(self) -> Sequence[str] | None:
        return self.model.config.classes

    @property
    def fields(self) -> Sequence[str]:
        known = {"text": self.conditions.text, "label": self.conditions.label}
        return [name for name, values in known.items() if values is not None]

    def batches(self, batch: int) -> Iterator[Sampled]:
        for start in range(0, self.count, batch):
            numbers = range(start, min(start + batch, self.count))
            text, label = self.conditions_of(numbers)
            yield Sampled(self.images(numbers), text, label)

    def images(self, numbers: Sequence[int]) -> Tensor:
        text, label = self.conditions_of(numbers)
        request = SampleRequest(
            prompt=text,
            label=label,
            count=len(numbers),
            seeds=[self.seed + i for i in numbers],
            batch=len(numbers),
            **self.options,
        )
        return to_uint8(pipeline.sample(self.model, request).images).cpu()

    @property
    def size(self) -> tuple[int, int]:
        """Of the images, (H, W)."""
        size: tuple[int, int] = self.options.get("size") or self.model.config.image_size
        return size

    def conditions_of(self, numbers: Sequence[int]) -> tuple[list[str] | None, list[int] | None]:
        """Texts and labels of the images with these numbers, None if there are none."""
        text, label = self.conditions.text, self.conditions.label
        return (
            None if text is None else [text[i] for i in numbers],
            None if label is None else [label[i] for i in numbers],
        )

    def describe(self) -> dict[str, Any]:
        about = {
            stage: facts.get("steps") for stage, facts in self.model.config.about.items() if isinstance(facts, dict)
        }
        return {"kind": "model", "path": self.path, "digest": self.model.digest, "trained_steps": about}

    def sampling(self) -> dict[str, Any]:
        last = self.seed + self.count - 1
        return {**self.sampling_settings, "seeds": f"{self.seed}..{last}"}


@dataclass(frozen=True)
class FolderSubject:
    """The first `count` images of a folder, in a fixed random order."""

    dataset: ImageDataset
    count: int
    _readable: list[int] = field(default_factory=list)
    """Rows in the order in which they were read; image numbers are indices into this list."""

    @property
    def classes(self) -> Sequence[str] | None:
        return self.dataset.classes

    @property
    def fields(self) -> Sequence[str]:
        return self.dataset.fields

    def batches(self, batch: int) -> Iterator[Sampled]:
        self._readable.clear()
        rows = chosen_rows(self.dataset, self.count)
        for read in sweep(self.dataset, batch, rows, unreadable=lambda row, error: None):
            self._readable.extend(read.index)
            label = read.fields.get("label")
            text = read.fields.get("text")
            yield Sampled(to_uint8(read.images), text, None if label is None else label.tolist())

    def images(self, numbers: Sequence[int]) -> Tensor:
        rows = self._readable or chosen_rows(self.dataset, self.count)
        return torch.stack([self.dataset[rows[i]].image for i in numbers])

    def describe(self) -> dict[str, Any]:
        return {
            "kind": "folder",
            "path": self.dataset.scan.title,
            "digest": self.dataset.fingerprint(),
            "images": len(self.dataset),
        }

    def sampling(self) -> dict[str, Any]:
        return {}
