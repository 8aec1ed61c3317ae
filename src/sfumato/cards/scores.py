"""The metrics of image sets: the features collected from the samples, and a table of metric functions."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from sfumato import rng
from sfumato.cards.card import Metric
from sfumato.cards.plan import MetricSpec
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
"""Labels of the samples, labels of the reference's rows, number of classes."""


@dataclass
class CollectedFeatures:
    """A network's features of the samples so far: a few kilobytes per image, no pixels."""

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
class MetricInputs:
    """The inputs of one metric."""

    spec: MetricSpec
    network: FeatureNetwork
    samples: CollectedFeatures
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
        """The metric's name."""
        return self.spec.label(self.network.name)

    def generator(self) -> torch.Generator:
        """A generator for this metric's random subsets."""
        return rng.generator(self.seed, "evaluation", self.spec.kind)


def compute_metrics(
    spec: MetricSpec,
    network: FeatureNetwork,
    samples: CollectedFeatures,
    reference: Reference | None,
    resamples: int,
    seed: int,
    labelled: Labelled | None = None,
) -> tuple[dict[str, Metric], list[str]]:
    """The metrics of one kind by their full names, each with its protocol, and warnings."""
    inputs = MetricInputs(spec, network, samples, reference, resamples, seed, labelled)
    metrics, settings = SCORES[spec.kind](inputs)
    protocol = {**network.describe(), **settings}
    named = {name: metric.model_copy(update={"protocol": protocol}) for name, metric in metrics.items()}
    return named, warnings_of(inputs)


Scored = tuple[dict[str, Metric], dict[str, object]]
"""Metrics by name, and the settings that belong to their protocol."""


def _frechet(inputs: MetricInputs) -> Scored:
    if not inputs.resamples:
        value = frechet_distance(GaussianStatistics.of(inputs.samples.parts), inputs.real.statistics)
        return {inputs.name: Metric(value=value, better="lower")}, {}
    distance = SampledDistance(inputs.samples.pooled(), inputs.real.statistics)
    return {inputs.name: _bounded(distance_interval(distance, inputs.generator(), inputs.resamples))}, {}


def _extrapolated(inputs: MetricInputs) -> Scored:
    distance = SampledDistance(inputs.samples.pooled(), inputs.real.statistics)
    if not inputs.resamples:
        metric = Metric(value=extrapolate(distance, inputs.generator()), better="lower")
    else:
        metric = _bounded(extrapolated_interval(distance, inputs.generator(), inputs.resamples))
    return {inputs.name: metric}, {"points": POINTS}


def _bounded(found: Interval) -> Metric:
    return Metric(value=found.value, better="lower", low=found.low, high=found.high)


def _layout(inputs: MetricInputs) -> Scored:
    assert inputs.samples.spatial is not None
    assert inputs.real.spatial is not None
    return {
        inputs.name: Metric(value=frechet_distance(inputs.samples.spatial, inputs.real.spatial), better="lower")
    }, {}


def _kernel(inputs: MetricInputs) -> Scored:
    found = kernel_distance(inputs.samples.pooled(), inputs.real.features, inputs.generator(), SUBSETS, SUBSET_SIZE)
    metric = Metric(value=found.mean, better="lower", std=found.std)
    return {inputs.name: metric}, {"subsets": found.subsets, "subset_size": found.subset_size}


def _inception_score(inputs: MetricInputs) -> Scored:
    logits = torch.cat(inputs.samples.logits)
    counted = InceptionScore(len(logits), SPLITS)
    counted.update(logits)
    found = counted.finish()
    return {inputs.name: Metric(value=found.mean, better="higher", std=found.std)}, {"splits": min(SPLITS, len(logits))}


def _precision_recall(inputs: MetricInputs) -> Scored:
    samples, real = inputs.samples.pooled(), inputs.real.features
    rows = min(len(samples), len(real), MOST_NEIGHBOURS_AMONG)
    # equal numbers on both sides: the radii, and so all four metrics, depend on them
    found = precision_recall(real[:rows], samples[:rows], NEIGHBOURS, NEIGHBOURS_DENSITY)
    values = {"precision": found.precision, "recall": found.recall, "density": found.density}
    values["coverage"] = found.coverage
    metrics = {f"{name}-{inputs.network.name}": Metric(value=v, better="higher") for name, v in values.items()}
    return metrics, {"rows": rows, "neighbours": NEIGHBOURS, "neighbours_density": NEIGHBOURS_DENSITY}


def _classification(inputs: MetricInputs) -> Scored:
    assert inputs.labelled is not None
    labels, known, classes = inputs.labelled
    half = len(known) // 2
    test, test_labels = inputs.real.features[half:], known[half:]
    ours = linear_accuracy(inputs.samples.pooled(), labels, test, test_labels, classes)
    ceiling = linear_accuracy(inputs.real.features[:half], known[:half], test, test_labels, classes)
    metrics = {
        inputs.name: Metric(value=ours, better="higher"),
        f"{inputs.name}-of-real": Metric(value=ceiling),
    }
    return metrics, {"tested": len(test_labels), "real_training": half}


SCORES: Mapping[str, Callable[[MetricInputs], Scored]] = {
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


def warnings_of(inputs: MetricInputs) -> list[str]:
    """Warnings about the metric's reliability."""
    if inputs.spec.kind not in ("fd", "sfd", "fd-inf"):
        return []
    layout = inputs.samples.spatial if inputs.spec.kind == "sfd" else None
    D = inputs.network.dim if layout is None else layout.dim
    n = sum(len(part) for part in inputs.samples.parts)
    if inputs.spec.kind == "fd-inf":
        hint = f"{n} samples are few for an extrapolation over {D} dimensions: {inputs.name} is only a rough indication"
        return [hint] if n < 2 * D else []
    advice = "compare it only with cards of the same counts, and trust KD more"
    counts = ((n, "samples"), (inputs.real.statistics.count, "real images"))
    few = " and ".join(f"{count} {what}" for count, what in counts if count < D)
    return (
        [f"{few} are fewer than the {D} dimensions of {inputs.name}, which is then far too large: {advice}"]
        if few
        else []
    )
