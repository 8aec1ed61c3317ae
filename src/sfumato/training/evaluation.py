"""A small evaluation during training: samples against held-out images in feature space; keeps the best model."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from sfumato import rng
from sfumato.data.dataset import buckets_of
from sfumato.data.loader import sweep
from sfumato.engine.precision import Precision, autocast
from sfumato.evaluation.features import FeatureNetwork, pooled
from sfumato.evaluation.frechet import GaussianStatistics, frechet_distance
from sfumato.evaluation.kernel import kernel_distance
from sfumato.evaluation.table import load_network
from sfumato.model import LatentDiffusion
from sfumato.pipeline import pipeline
from sfumato.pipeline.latents import NotFiniteError
from sfumato.pipeline.request import SampleRequest
from sfumato.training.data import RunData
from sfumato.training.diffusion import ConditionalDenoiser
from sfumato.training.diffusion_run import EvaluationConfig
from sfumato.training.previews import Values, sample_in_sizes, skipped, with_networks
from sfumato.training.state import TrainState

BATCH = 32
MOST_REAL = 4096
BEST = "best"
"""The note in the state: [value, step] of the best model so far."""


@dataclass(frozen=True)
class SampleEvaluation:
    """Samples with the same seeds and conditions every time and measures the distance from `real` (M, D) features.

    `keep(networks, state)` is called if the distance is the smallest so far.
    """

    model: LatentDiffusion
    config: EvaluationConfig
    network: FeatureNetwork
    real: Tensor
    text: Sequence[str] | None
    label: Sequence[int] | None
    precision: Precision
    keep: Callable[[ConditionalDenoiser, TrainState], None]
    about: Mapping[str, bool] = field(default_factory=dict)
    sizes: Sequence[tuple[int, int]] | None = None
    """(H, W) of each real image, where they have several: samples have them, too."""

    @classmethod
    def of(
        cls,
        model: LatentDiffusion,
        data: RunData,
        config: EvaluationConfig,
        precision: Precision,
        keep: Callable[[ConditionalDenoiser, TrainState], None],
    ) -> "SampleEvaluation":
        """Compares with the held-out images (or training images), at most MOST_REAL, and uses their conditions.

        Raises UserError if the weights of the feature network are missing.
        """
        network = load_network(config.features).to(model.device)
        source = data.measured
        sizes: list[tuple[int, int]] = []
        text: list[str] = []
        label: list[int] = []
        features = []
        for batch in sweep(source, BATCH, range(min(MOST_REAL, len(source))), unreadable=lambda row, error: None):
            features.append(network(batch.images).pooled)
            sizes += [(batch.images.shape[2], batch.images.shape[3])] * len(batch.images)
            text += batch.fields.get("text", [])
            label += batch.fields["label"].tolist() if "label" in batch.fields else []
        conditioner = model.second.conditioner if model.second else None
        reads = () if conditioner is None else conditioner.reads
        return cls(
            model,
            config,
            network,
            torch.cat(features),
            text if "text" in reads else None,
            label if "label" in reads else None,
            precision,
            keep,
            data.about_measured,
            None if buckets_of(source) is None else sizes,
        )

    @property
    def name(self) -> str:
        """The metric's name in the log."""
        return f"{self.config.metric.upper()}-{self.network.name}"

    def __call__(self, networks: ConditionalDenoiser, state: TrainState) -> Values:
        try:
            value = self._distance(pooled(self.network, self._samples(with_networks(self.model, networks))))
        except NotFiniteError as error:
            return skipped("evaluation", state.step, error)
        before = state.notes.get(BEST)
        if before is None or value < before[0]:
            self.keep(networks, state)
            state.notes[BEST] = [value, state.step]
        best, step = state.notes[BEST]
        return {self.name: value, f"best_{self.name}": best, "best_step": step, **self.about}

    def _samples(self, model: LatentDiffusion) -> Iterator[Tensor]:
        for start in range(0, self.config.samples, BATCH):
            seeds = range(start, min(start + BATCH, self.config.samples))
            request = SampleRequest(
                prompt=None if self.text is None else [self.text[i % len(self.text)] for i in seeds],
                label=None if self.label is None else [self.label[i % len(self.label)] for i in seeds],
                count=len(seeds),
                seeds=list(seeds),
                steps=self.config.steps,
            )
            with autocast(model.device, self.precision):
                if self.sizes is None:
                    yield pipeline.sample(model, request).images
                    continue
                sizes = [self.sizes[i % len(self.sizes)] for i in seeds]
                yield from (image[None] for image in sample_in_sizes(model, request, sizes))

    def _distance(self, samples: Tensor) -> float:
        if self.config.metric == "fd":
            return frechet_distance(GaussianStatistics.of(samples), GaussianStatistics.of(self.real))
        return kernel_distance(samples, self.real, rng.generator(0, "evaluation", "kd")).mean
