"""Samples and scores everything that the demo's page shows about stage 2, once."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from torch import Tensor

from sfumato.data.toyworld.dataset import ToyWorldConfig
from sfumato.model import LatentDiffusion
from sfumato.pipeline.choices import chosen
from sfumato.pipeline.parts import second_stage
from sfumato.pipeline.request import AUTO, DEFAULT_GUIDANCE, DEFAULT_STEPS
from sfumato.report.gallery import Gallery, prompts_shown
from sfumato.report.measure import (
    BATCH,
    PromptSet,
    build_prompts,
    chance_row,
    denoising_strip,
    latent_maps,
    sample,
    score_row,
    seconds_of,
)
from sfumato.report.result import Sampling, ScoreRow

GUIDANCE = 1.5
"""Of the demo: at every length of training tried, more facts are right than at the default of other models."""


class Progress(Protocol):
    """Called with (done, total) while images are generated."""

    def __call__(self, done: int, total: int, /) -> None: ...


@dataclass(frozen=True)
class Extent:
    """How many images to generate: `prompts` at the demo's guidance, `others` at each other one and of known ones."""

    prompts: int = 256
    others: int = 64
    guidance: tuple[float, ...] = (1.0, GUIDANCE, DEFAULT_GUIDANCE)
    steps: int = DEFAULT_STEPS
    shown: int = 8
    sheet: int = 48
    strips: int = 4
    strip_steps: int = 10

    @property
    def network_calls(self) -> int:
        """Network calls in total, counted per image; a guided step makes two."""
        guided = sum(2 if scale != 1 else 1 for scale in self.guidance if scale != GUIDANCE)
        return self.steps * (2 * self.prompts + (2 + guided) * self.others + 2 * self.strips)


@dataclass(frozen=True)
class Survey:
    """Results of the second stage, and all images of the page."""

    sampling: Sampling
    facts: dict[str, int]
    generated: ScoreRow
    other_generated: tuple[ScoreRow, ...]
    real: ScoreRow
    reconstructed: ScoreRow
    chance: ScoreRow
    gallery: Gallery


def survey(
    model: LatentDiffusion,
    world: ToyWorldConfig,
    prompt_set: PromptSet,
    reconstructions: Tensor,
    extent: Extent,
    progress: Callable[[str], Progress],
) -> Survey:
    """Samples and scores: `prompt_set` are held-out prompts and scenes, `reconstructions` those scenes reconstructed.

    `progress(title)` returns a callable of (done, total).
    """
    default = GUIDANCE
    samples: dict[float, Tensor] = {}

    def sample_all() -> Tensor:
        samples[default] = sample(model, prompt_set.captions, default, extent.steps, progress("sampling"))
        return samples[default]

    elapsed = seconds_of(sample_all)
    rows = [score_row(f"guidance {default:g}", prompt_set.prompts, samples[default], default)]
    subset = prompt_set.first(extent.others)
    for scale in extent.guidance:
        if scale != default:
            samples[scale] = sample(model, subset.captions, scale, extent.steps, progress(f"guidance {scale:g}"))
            rows.append(score_row(f"guidance {scale:g}", subset.prompts, samples[scale], scale))
    known = build_prompts(world, extent.others, "validation")
    images = sample(model, known.captions, default, extent.steps, progress("known compositions"))
    rows.append(score_row("known compositions", known.prompts, images, default))
    return Survey(
        sampling=_sampling(model, prompt_set, extent, elapsed),
        facts=prompt_set.facts_by_kind(),
        generated=rows[0],
        other_generated=tuple(rows[1:]),
        real=score_row("real scenes", prompt_set.prompts, prompt_set.images),
        reconstructed=score_row("reconstructions", prompt_set.prompts, reconstructions),
        chance=chance_row("chance", prompt_set),
        gallery=_gallery(model, prompt_set, reconstructions, extent, samples),
    )


def _sampling(model: LatentDiffusion, prompt_set: PromptSet, extent: Extent, elapsed: float) -> Sampling:
    one = prompt_set.captions[:1]
    return Sampling(
        sampler=chosen(second_stage(model), AUTO, None, extent.steps, GUIDANCE).sampler.kind,
        steps=extent.steps,
        guidance=GUIDANCE,
        batch=min(BATCH, len(prompt_set.prompts)),
        seconds_alone=seconds_of(lambda: sample(model, one, GUIDANCE, extent.steps)),
        seconds_in_batch=elapsed / len(prompt_set.prompts),
    )


def _gallery(
    model: LatentDiffusion, prompt_set: PromptSet, reconstructions: Tensor, extent: Extent, samples: dict[float, Tensor]
) -> Gallery:
    shown = min(extent.shown, *(len(images) for images in samples.values()))
    sheet = slice(shown, shown + extent.sheet)
    strips = slice(0, min(extent.strips, len(prompt_set.prompts)))
    return Gallery(
        originals=prompt_set.images,
        reconstructions=reconstructions,
        latent_maps=latent_maps(model, prompt_set.images[0]),
        guidance=extent.guidance,
        prompts=prompts_shown(prompt_set, [samples[scale] for scale in extent.guidance], shown),
        sheet=samples[GUIDANCE][sheet],
        sheet_captions=tuple(prompt_set.captions[sheet]),
        strip=denoising_strip(
            model,
            prompt_set.captions[strips],
            list(range(len(prompt_set.prompts))[strips]),
            GUIDANCE,
            extent.steps,
            extent.strip_steps,
        ),
    )
