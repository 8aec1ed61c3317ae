"""The scores of a study of latent spaces: true facts on the toy world, the kernel distance on other images."""

from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from torch import Tensor

from sfumato.data.dataset import Dataset
from sfumato.data.toyworld.dataset import ToyWorldConfig
from sfumato.evaluation.table import load_network
from sfumato.model import LatentDiffusion
from sfumato.pipeline import pipeline
from sfumato.pipeline.request import SampleRequest
from sfumato.report.measure import BATCH, PromptSet, build_prompts, sample, score_row
from sfumato.studies.evaluator import Evaluator
from sfumato.studies.latents.plan import LatentsStudyConfig
from sfumato.studies.latents.result import Better
from sfumato.training.workers import Workers

GUIDANCE = 3.0
"""Of samples from captions."""


@dataclass(frozen=True)
class SampleScore:
    """A score, parts of it by name, and the images (N, 3, H, W) that were scored."""

    value: float
    details: dict[str, float]
    images: Tensor


class Scorer(Protocol):
    """Samples from a model and scores the images."""

    @property
    def name(self) -> str: ...

    @property
    def better(self) -> Better: ...

    def shown(self, score: float) -> str:
        """A score as text."""
        ...

    def __call__(self, model: LatentDiffusion) -> SampleScore: ...


@dataclass(frozen=True)
class FactScorer:
    """The share of the facts in captions of held-out scenes that the toy world's reader finds in their images."""

    prompts: PromptSet
    steps: int
    name: str = "facts"
    better: Better = "higher"

    def shown(self, score: float) -> str:
        """In percent."""
        return f"{score:.1%}"

    def __call__(self, model: LatentDiffusion) -> SampleScore:
        """Seeds 0, 1, 2, ..., one for each caption."""
        images = sample(model, self.prompts.captions, GUIDANCE, self.steps)
        rates = score_row("", self.prompts.prompts, images, GUIDANCE).rates
        return SampleScore(rates["facts"], dict(rates), images)


@dataclass(frozen=True)
class DistanceScorer:
    """The kernel distance of unconditional samples from the data, in the features of one network."""

    evaluator: Evaluator
    count: int
    steps: int
    name: str = "kernel distance"
    better: Better = "lower"

    def shown(self, score: float) -> str:
        """With four decimals."""
        return f"{score:.4f}"

    def __call__(self, model: LatentDiffusion) -> SampleScore:
        """Seeds 0, 1, 2, ..."""
        request = SampleRequest(count=self.count, steps=self.steps, batch=BATCH)
        images = pipeline.sample(model, request).images.clamp(-1, 1).cpu()
        found = self.evaluator(images)
        return SampleScore(found.kernel, {"deviation over subsets": found.kernel_std}, images)


def scorer_for(config: LatentsStudyConfig, data: Dataset, features: str, cache: Path, workers: Workers) -> Scorer:
    """The scorer that suits the images. Raises UserError for an unknown feature network, or one without weights."""
    if isinstance(config.data, ToyWorldConfig):
        return FactScorer(build_prompts(config.data, config.samples), config.sampling_steps)
    network = load_network(features).to(workers.device)
    return DistanceScorer(Evaluator.of(network, data, cache), config.samples, config.sampling_steps)
