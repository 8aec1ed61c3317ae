"""Measures a subject against data: one pass over its images, then the metrics, then nearest neighbours."""

import math
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from hashlib import blake2b
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sfumato.cards.card import Metric
from sfumato.cards.plan import WITHOUT_DATA, MetricSpec
from sfumato.cards.reference import Reference, reference
from sfumato.cards.scores import FEWEST, CollectedFeatures, compute_metrics
from sfumato.cards.subject import Sampled, Subject
from sfumato.data.dataset import Dataset, Progress
from sfumato.data.image_dataset import ImageDataset
from sfumato.data.toyworld.dataset import ToyWorld
from sfumato.data.toyworld.facts import Score, facts, score, tally
from sfumato.data.toyworld.reader import read_batch
from sfumato.errors import UserError
from sfumato.evaluation.features import FeatureNetwork
from sfumato.evaluation.memorisation import Neighbours, neighbours
from sfumato.evaluation.pretrained import ClipScore

SHOWN = 64
CLOSEST = 8
NEIGHBOURS = 3


@dataclass(frozen=True)
class Settings:
    """How to measure.

    Args:
        metrics: what to measure.
        networks: by the names that `metrics` use.
        clip: required for a CLIP score.
        batch: images per batch.
        reference: how many images of the data to use; None for all.
        resamples: number of bootstrap resamples for the intervals; 0 for none.
        cache: the folder in which features of the data are cached.
        seed: seed of random subsets.
    """

    metrics: Sequence[MetricSpec]
    networks: Mapping[str, FeatureNetwork]
    clip: ClipScore | None = None
    batch: int = 32
    reference: int | None = None
    resamples: int = 0
    cache: Path | None = None
    seed: int = 0


@dataclass(frozen=True)
class Closest:
    """A sample (3, H, W) and the training images (K, 3, H, W) nearest to it, uint8, with their distances."""

    sample: Tensor
    training: Tensor
    distances: tuple[float, ...]
    ratio: float


@dataclass(frozen=True)
class Measured:
    """The results, and images to show: `samples` uint8 (N, 3, H, W), the first ones, uncurated."""

    count: int
    metrics: dict[str, Metric]
    labels: dict[str, int] | None
    memorisation: dict[str, float] | None
    warnings: tuple[str, ...]
    seconds: dict[str, float]
    samples: Tensor
    captions: tuple[str, ...]
    closest: tuple[Closest, ...]


@dataclass
class _Pass:
    """The results of one pass over the images."""

    collected: dict[str, CollectedFeatures]
    shown: list[Tensor] = field(default_factory=list)
    captions: list[str] = field(default_factory=list)
    labels: list[int] = field(default_factory=list)
    clip: list[Tensor] = field(default_factory=list)
    readings: list[Score] = field(default_factory=list)
    count: int = 0


def measure(
    subject: Subject, dataset: Dataset, settings: Settings, progress: Callable[[str], Progress] | None = None
) -> Measured:
    """Computes all metrics of a subject. Raises UserError if the data or the subject lacks what a metric needs."""
    check(subject, dataset, settings)
    bars = progress or (lambda title: lambda done, total: None)
    seconds: dict[str, float] = {}
    kinds = {(spec.kind, spec.network) for spec in settings.metrics}
    real: dict[str, Reference] = {}
    with _timed("reading the data", seconds):
        for name, network in settings.networks.items():
            if any(used == name and kind not in WITHOUT_DATA for kind, used in kinds):
                spatial = ("sfd", name) in kinds
                bar = bars(f"data: {network.name}")
                real[name] = reference(
                    network, dataset, settings.reference, settings.cache, settings.batch, spatial, bar
                )
    with _timed("images and their features", seconds):
        seen = _one_pass(subject, settings, bars("images"))
    with _timed("metrics", seconds):
        metrics, warnings = _metrics(seen, real, subject, dataset, settings)
    with _timed("neighbours", seconds):
        memorisation, closest = _memorisation(seen, real, subject, dataset)
    counts = Counter(seen.labels)
    names = subject.classes
    labels = {name: counts[i] for i, name in enumerate(names)} if names and seen.labels else None
    return Measured(
        count=seen.count,
        metrics=metrics,
        labels=labels,
        memorisation=memorisation,
        warnings=tuple(warnings),
        seconds=seconds,
        samples=torch.cat(seen.shown),
        captions=tuple(seen.captions),
        closest=closest,
    )


def check(subject: Subject, dataset: Dataset, settings: Settings) -> None:
    """Raises UserError if a metric cannot be computed on this data, before anything is sampled."""
    kinds = {spec.kind for spec in settings.metrics}
    if subject.count < 2:
        raise UserError(f"{subject.count} image is not a distribution: give at least two, better thousands")
    real = len(dataset) if settings.reference is None else min(settings.reference, len(dataset))
    for kind, fewest in FEWEST.items():
        if kind in kinds and (subject.count < fewest or (real < fewest and kind == "prdc")):
            raise UserError(
                f"metric {kind!r} needs {fewest} images on each side, here are {subject.count} and {real} real ones: "
                "give more, or leave it out of --metrics"
            )
    if "cas" in kinds and not ("label" in dataset.fields and "label" in subject.fields):
        raise UserError("metric 'cas' needs labels of samples and data: class sub-folders, or a class model")
    if "reader" in kinds and not isinstance(dataset, ToyWorld):
        raise UserError("metric 'reader' reads images of the toy world only: give toy as DATA, or leave it out")
    for kind in ("clip-score", "reader"):
        if kind in kinds and "text" not in subject.fields:
            raise UserError(f"metric {kind!r} needs the captions from which the images were generated; these have none")


@contextmanager
def _timed(name: str, seconds: dict[str, float]) -> Iterator[None]:
    t_start = time.monotonic()
    yield
    seconds[name] = round(time.monotonic() - t_start, 2)


def _one_pass(subject: Subject, settings: Settings, progress: Progress) -> _Pass:
    seen = _Pass({name: CollectedFeatures() for name in settings.networks})
    with_logits = {spec.network for spec in settings.metrics if spec.kind == "is"}
    with_spatial = {spec.network for spec in settings.metrics if spec.kind == "sfd"}
    read = any(spec.kind == "reader" for spec in settings.metrics)
    for batch in subject.batches(settings.batch):
        for name, network in settings.networks.items():
            found = network(batch.images)
            seen.collected[name].add(found, name in with_spatial, name in with_logits)
            if settings.clip is not None and network is settings.clip.images:
                seen.clip.append(settings.clip(found.pooled, _texts(batch)))
        if read:
            texts = _texts(batch)
            seen.readings += [
                score(facts(text), reading) for text, reading in zip(texts, read_batch(batch.images), strict=True)
            ]
        room = SHOWN - sum(len(part) for part in seen.shown)
        seen.shown.append(batch.images[:room])
        seen.captions += (batch.text or [])[:room]
        seen.labels += batch.label or []
        seen.count += len(batch.images)
        progress(seen.count, subject.count)
    if seen.count < 2:
        raise UserError(f"{seen.count} of {subject.count} images could be read: too few to measure")
    return seen


def _texts(batch: Sampled) -> list[str]:
    assert batch.text is not None, "checked before"
    return batch.text


def _metrics(
    seen: _Pass, real: Mapping[str, Reference], subject: Subject, dataset: Dataset, settings: Settings
) -> tuple[dict[str, Metric], list[str]]:
    metrics: dict[str, Metric] = {}
    warnings: list[str] = []
    for spec in settings.metrics:
        if spec.kind == "reader":
            rates = tally(seen.readings)
            metrics["reader-facts"] = Metric(value=rates["facts"], better="higher")
            metrics["reader-prompts"] = Metric(value=rates["prompts"], better="higher")
            continue
        assert spec.network is not None
        network = settings.networks[spec.network]
        collected = seen.collected[spec.network]
        if spec.kind == "clip-score":
            values = torch.cat(seen.clip)
            spread = values.std().item() if len(values) > 1 else None
            protocol = network.describe()
            found = {spec.label(network.name): Metric(value=values.mean().item(), better="higher", std=spread)}
            metrics |= {name: metric.model_copy(update={"protocol": protocol}) for name, metric in found.items()}
            continue
        labelled = None
        if spec.kind == "cas":
            labelled = _labels(seen, real[spec.network], subject, dataset)
        found, new_warnings = compute_metrics(
            spec, network, collected, real.get(spec.network), settings.resamples, settings.seed, labelled
        )
        metrics |= found
        warnings += [warning for warning in new_warnings if warning not in warnings]
    return metrics, warnings


def _labels(seen: _Pass, real: Reference, subject: Subject, dataset: Dataset) -> tuple[Tensor, Tensor, int]:
    """Labels of the samples and of the reference rows in the data's numbering, and how many classes it has."""
    ours, theirs = list(subject.classes or ()), list(dataset.classes or ())
    unknown = [name for name in ours if name not in theirs]
    if unknown and len(ours) != len(theirs):
        raise UserError(f"metric 'cas': the class {unknown[0]!r} is not in the data, which has {', '.join(theirs)}")
    place = [i if unknown else theirs.index(name) for i, name in enumerate(ours)]
    if isinstance(dataset, ImageDataset):
        known = [int(dataset.describe(int(row))["label"]) for row in real.rows]
    else:
        known = [int(dataset[int(row)].fields["label"]) for row in real.rows]
    return torch.tensor([place[label] for label in seen.labels]), torch.tensor(known), len(theirs)


def _memorisation(
    seen: _Pass, real: Mapping[str, Reference], subject: Subject, dataset: Dataset
) -> tuple[dict[str, float] | None, tuple[Closest, ...]]:
    """Memorisation figures, and the samples closest to the data with their neighbours; None without data features."""
    name = next((name for name in real if len(real[name].features) > NEIGHBOURS), None)
    if name is None:
        return None, ()
    found = neighbours(seen.collected[name].pooled(), real[name].features, NEIGHBOURS)
    figures = {
        "authenticity": found.authenticity,
        "copies": found.copies(),
        "median_ratio": found.ratio.median().item(),
        "searched": float(len(real[name].features)),
    }
    # duplicates in the data make ratios infinite
    figures = {key: value for key, value in figures.items() if math.isfinite(value)}
    return figures, _closest(found, real[name], subject, dataset)


def _closest(found: Neighbours, real: Reference, subject: Subject, dataset: Dataset) -> tuple[Closest, ...]:
    numbers = found.ratio.argsort(stable=True)[:CLOSEST].tolist()
    samples = subject.images(numbers)
    closest = []
    for sample, number in zip(samples, numbers, strict=True):
        rows = real.rows[found.rows[number]].tolist()
        training = torch.stack([dataset[int(row)].image for row in rows])
        distances = tuple(round(float(d), 4) for d in found.distances[number])
        closest.append(Closest(sample, training, distances, float(found.ratio[number])))
    return tuple(closest)


def content_hash(dataset: Dataset) -> str:
    """A hash of the image files, independent of cropping and resizing."""
    if not isinstance(dataset, ImageDataset):
        return dataset.fingerprint()
    digest = blake2b(digest_size=12)
    for name in dataset.scan.files:
        digest.update(name.encode(errors="surrogateescape") + b"\0" + dataset.hashes[name])
    return digest.hexdigest()


def protocol_of(
    dataset: Dataset, samples: int, reference: int | None, size: tuple[int, int], labels: str
) -> dict[str, Any]:
    """The fields that must be equal for two cards to be compared.

    Args:
        dataset: the real images.
        samples: number of evaluated images.
        reference: number of real images used; None for all.
        size: (H, W) of both.
        labels: how the samples' classes were chosen.
    """
    framing = dataset.framing if isinstance(dataset, ImageDataset) else None
    used = len(dataset) if reference is None else min(reference, len(dataset))
    return {
        "samples": samples,
        "size": list(size),
        "labels": labels,
        "data": {
            "hash": content_hash(dataset),
            "images": used,
            "crop": "none" if framing is None else framing.resize,
            "resize": "none" if framing is None else framing.filter,
            "background": None if framing is None else list(framing.background),
        },
    }
