"""Samples of a trained model with the conditions of held-out images, and their scores."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from sfumato.data.dataset import Dataset
from sfumato.data.loader import sweep
from sfumato.model import LatentDiffusion
from sfumato.pipeline import pipeline
from sfumato.pipeline.latents import NotFiniteError
from sfumato.pipeline.request import SampleRequest
from sfumato.report.measure import BATCH, PromptSet, build_prompts, score_row
from sfumato.studies.evaluator import Evaluator, Score
from sfumato.studies.joint.plan import JointStudyConfig
from sfumato.training.data import RunData


@dataclass(frozen=True)
class Scored:
    """The images (N, 3, H, W), None if they are not finite; their kernel distance, and the shares of true facts."""

    images: Tensor | None
    score: Score | None
    facts: dict[str, float]


@dataclass(frozen=True)
class Scorer:
    """Samples with seeds 0, 1, 2, ... and conditions of held-out images, the same for every model."""

    config: JointStudyConfig
    evaluator: Evaluator
    prompts: PromptSet | None
    """The toy world's, whose facts are read off the samples."""
    text: Sequence[str] | None
    label: Sequence[int] | None

    @classmethod
    def of(cls, config: JointStudyConfig, evaluator: Evaluator, data: RunData) -> "Scorer":
        """With the captions or labels of the held-out images, as far as there are any."""
        prompts = None if config.toy is None else build_prompts(config.toy, config.samples)
        text = prompts.captions if prompts is not None else _column(data.measured, "text", config.samples)
        label = _column(data.measured, "label", config.samples)
        return cls(config, evaluator, prompts, text, label)

    def __call__(self, model: LatentDiffusion) -> Scored:
        """The score of a model of both stages."""
        try:
            images = self._sampled(model)
        except NotFiniteError:
            return Scored(None, None, {})
        facts: dict[str, float] = {}
        if self.prompts is not None and self._reads(model, "text"):
            facts = dict(score_row("", self.prompts.prompts, images).rates)
        return Scored(images, self.evaluator(images), facts)

    def _reads(self, model: LatentDiffusion, field: str) -> bool:
        assert model.second is not None
        return model.second.conditioner is not None and field in model.second.conditioner.reads

    def _sampled(self, model: LatentDiffusion) -> Tensor:
        assert model.second is not None
        guided = model.second.config.condition_dropout > 0
        everything = SampleRequest(
            guidance=self.config.guidance if guided else 1.0, steps=self.config.sampling_steps, batch=BATCH
        )
        images = []
        for seeds in torch.arange(self.config.samples).split(BATCH):
            rows = seeds.tolist()
            request = replace(everything, count=len(rows), seeds=rows)
            if self.text is not None and self._reads(model, "text"):
                request = replace(request, prompt=[self.text[row % len(self.text)] for row in rows])
            if self.label is not None and self._reads(model, "label"):
                request = replace(request, label=[self.label[row % len(self.label)] for row in rows])
            images.append(pipeline.sample(model, request).images.clamp(-1, 1).cpu())
        return torch.cat(images)


def _column(data: Dataset, name: str, count: int) -> list[Any] | None:
    """A field of at most `count` readable images, None if the data lacks it."""
    if name not in data.fields:
        return None
    batches = sweep(data, BATCH, range(min(count, len(data))), unreadable=lambda row, error: None)
    values = [batch.fields[name] for batch in batches]
    return [one for each in values for one in (each.tolist() if isinstance(each, Tensor) else each)]
