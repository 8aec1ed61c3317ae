"""The metrics of sets, from features: what is gathered of the samples, and the table of what each kind computes."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from sfumato import rng
from sfumato.cards.card import Metric
from sfumato.cards.plan import Wanted
from sfumato.cards.reference import Reference
from sfumato.evaluation.classification import linear_accuracy
from sfumato.evaluation.extrapolation import (
    POINTS,
    Interval,
    SampledDistance,
    distance_interval,
    extrapolate,
    extrapolated_interval,
)
from sfumato.evaluation.features import FeatureNetwork, Features
from sfumato.evaluation.frechet import GaussianStatistics, frechet_distance
from sfumato.evaluation.inception_score import InceptionScore
from sfumato.evaluation.kernel import kernel_distance
from sfumato.evaluation.precision_recall import precision_recall

SUBSETS, SUBSET_SIZE = 100, 1000
SPLITS = 10
MOST_NEIGHBOURS_AMONG = 10_000
NEIGHBOURS, NEIGHBOURS_DENSITY = 3, 5

Labelled = tuple[Tensor, Tensor, int]
"""Labels of the samples, labels of the reference's kept rows, number of classes."""


@dataclass
class Collected:
    """What a network said of the samples so far: a few kilobytes an image, never the image."""

    parts: list[Tensor] = field(default_factory=list)
    logits: list[Tensor] = field(default_factory=list)
    spatial: GaussianStatistics | None = None

    def add(self, found: Features, with_spatial: bool, with_logits: bool) -> None:
        """Adds a batch."""
        self.parts.append(found.pooled)
        if with_logits and found.logits is not None:
            self.logits.append(found.logits)
        if with_spatial and found.spatial is not None:
            self.spatial = self.spatial or GaussianStatistics(found.spatial.shape[1])
            self.spatial.update(found.spatial)

    def pooled(self) -> Tensor:
        """(N, D) float32."""
        return torch.cat(self.parts)


@dataclass(frozen=True)
class Job:
    """One metric's materials."""

    wanted: Wanted
    network: FeatureNetwork
    samples: Collected
    reference: Reference | None
    resamples: int
    seed: int
    labelled: Labelled | None

    @property
    def real(self) -> Reference:
        """The reference of metrics that need one."""
        assert self.reference is not None
        return self.reference

    @property
    def name(self) -> str:
        """What the number is called."""
        return self.wanted.label(self.network.name)

    def generator(self) -> torch.Generator:
        """Of this metric's random subsets."""
        return rng.generator(self.seed, "evaluation", self.wanted.kind)


def scored(
    wanted: Wanted,
    network: FeatureNetwork,
    samples: Collected,
    reference: Reference | None,
    resamples: int,
    seed: int,
    labelled: Labelled | None = None,
) -> tuple[dict[str, Metric], list[str]]:
    """The metrics of one kind by their full names, each with its protocol, and what the user should know of them."""
    job = Job(wanted, network, samples, reference, resamples, seed, labelled)
    metrics, settings = SCORES[wanted.kind](job)
    protocol = {**network.describe(), **settings}
    named = {name: metric.model_copy(update={"protocol": protocol}) for name, metric in metrics.items()}
    return named, warnings_of(job)


Scored = tuple[dict[str, Metric], dict[str, object]]
"""Metrics by name, and the settings that belong to their protocol."""


def _frechet(job: Job) -> Scored:
    if not job.resamples:
        value = frechet_distance(GaussianStatistics.of(job.samples.parts), job.real.statistics)
        return {job.name: Metric(value=value, better="lower")}, {}
    distance = SampledDistance(job.samples.pooled(), job.real.statistics)
    return {job.name: _bounded(distance_interval(distance, job.generator(), job.resamples))}, {}


def _extrapolated(job: Job) -> Scored:
    distance = SampledDistance(job.samples.pooled(), job.real.statistics)
    if not job.resamples:
        metric = Metric(value=extrapolate(distance, job.generator()), better="lower")
    else:
        metric = _bounded(extrapolated_interval(distance, job.generator(), job.resamples))
    return {job.name: metric}, {"points": POINTS}


def _bounded(found: Interval) -> Metric:
    return Metric(value=found.value, better="lower", low=found.low, high=found.high)


def _layout(job: Job) -> Scored:
    assert job.samples.spatial is not None
    assert job.real.spatial is not None
    return {job.name: Metric(value=frechet_distance(job.samples.spatial, job.real.spatial), better="lower")}, {}


def _kernel(job: Job) -> Scored:
    found = kernel_distance(job.samples.pooled(), job.real.features, job.generator(), SUBSETS, SUBSET_SIZE)
    metric = Metric(value=found.mean, better="lower", std=found.std)
    return {job.name: metric}, {"subsets": found.subsets, "subset_size": found.subset_size}


def _inception_score(job: Job) -> Scored:
    logits = torch.cat(job.samples.logits)
    counted = InceptionScore(len(logits), SPLITS)
    counted.update(logits)
    found = counted.finish()
    return {job.name: Metric(value=found.mean, better="higher", std=found.std)}, {"splits": min(SPLITS, len(logits))}


def _precision_recall(job: Job) -> Scored:
    samples, real = job.samples.pooled(), job.real.features
    rows = min(len(samples), len(real), MOST_NEIGHBOURS_AMONG)
    # equal numbers on both sides: radii, and with them all four, depend on them
    found = precision_recall(real[:rows], samples[:rows], NEIGHBOURS, NEIGHBOURS_DENSITY)
    values = {"precision": found.precision, "recall": found.recall, "density": found.density}
    values["coverage"] = found.coverage
    metrics = {f"{name}-{job.network.name}": Metric(value=v, better="higher") for name, v in values.items()}
    return metrics, {"rows": rows, "neighbours": NEIGHBOURS, "neighbours_density": NEIGHBOURS_DENSITY}


def _classification(job: Job) -> Scored:
    assert job.labelled is not None
    labels, known, classes = job.labelled
    half = len(known) // 2
    test, test_labels = job.real.features[half:], known[half:]
    ours = linear_accuracy(job.samples.pooled(), labels, test, test_labels, classes)
    ceiling = linear_accuracy(job.real.features[:half], known[:half], test, test_labels, classes)
    metrics = {
        job.name: Metric(value=ours, better="higher"),
        f"{job.name}-of-real": Metric(value=ceiling),
    }
    return metrics, {"tested": len(test_labels), "real_taught": half}


SCORES: Mapping[str, Callable[[Job], Scored]] = {
    "fd": _frechet,
    "fd-inf": _extrapolated,
    "sfd": _layout,
    "kd": _kernel,
    "is": _inception_score,
    "prdc": _precision_recall,
    "cas": _classification,
}


FEWEST: Mapping[str, int] = {"prdc": max(NEIGHBOURS, NEIGHBOURS_DENSITY) + 1, "fd-inf": 2 * POINTS}
"""Images that a metric needs on each side, where two are too few."""


def warnings_of(job: Job) -> list[str]:
    """What a reader of the number must know."""
    if job.wanted.kind not in ("fd", "sfd", "fd-inf"):
        return []
    layout = job.samples.spatial if job.wanted.kind == "sfd" else None
    D = job.network.dim if layout is None else layout.dim
    n = sum(len(part) for part in job.samples.parts)
    if job.wanted.kind == "fd-inf":
        hint = f"{n} samples are few for a line through parts of them over {D} dimensions: take {job.name} for a hint"
        return [hint] if n < 2 * D else []
    worth = "compare it only with cards of the same counts, and trust KD more"
    counts = ((n, "samples"), (job.real.statistics.count, "real images"))
    few = " and ".join(f"{count} {what}" for count, what in counts if count < D)
    return (
        [f"{few} are fewer than the {D} dimensions of {job.name}, which is far too large then: {worth}"] if few else []
    )
