"""Everything that a finished demo shows of its second stage: drawn once, judged once."""

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
    Asked,
    ask,
    chance_row,
    denoising_strip,
    draw,
    latent_maps,
    score_row,
    seconds_of,
)
from sfumato.report.result import Sampling, ScoreRow


class Progress(Protocol):
    """Told (done, total) while images are drawn."""

    def __call__(self, done: int, total: int, /) -> None: ...


@dataclass(frozen=True)
class Extent:
    """How much is drawn: `prompts` at the default guidance, `others` at each further one and of known compositions."""

    prompts: int = 256
    others: int = 64
    guidance: tuple[float, ...] = (1.0, DEFAULT_GUIDANCE, 6.0)
    steps: int = DEFAULT_STEPS
    shown: int = 8
    sheet: int = 48
    strips: int = 4
    strip_steps: int = 10

    @property
    def network_calls(self) -> int:
        """Calls for one image each that all this takes; a guided step calls twice."""
        guided = sum(2 if scale != 1 else 1 for scale in self.guidance if scale != DEFAULT_GUIDANCE)
        return self.steps * (2 * self.prompts + (2 + guided) * self.others + 2 * self.strips)


@dataclass(frozen=True)
class Survey:
    """The second stage's numbers and every image of the page."""

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
    asked: Asked,
    reconstructions: Tensor,
    extent: Extent,
    progress: Callable[[str], Progress],
) -> Survey:
    """Draws and scores: `asked` are the held-out prompts with their scenes, `reconstructions` those scenes again.

    `progress(title)` gives a callable of (done, total).
    """
    default = DEFAULT_GUIDANCE
    drawn: dict[float, Tensor] = {}

    def draw_all() -> Tensor:
        drawn[default] = draw(model, asked.captions, default, extent.steps, progress("drawing"))
        return drawn[default]

    elapsed = seconds_of(draw_all)
    rows = [score_row(f"guidance {default:g}", asked.prompts, drawn[default], default)]
    few = asked.first(extent.others)
    for scale in extent.guidance:
        if scale != default:
            drawn[scale] = draw(model, few.captions, scale, extent.steps, progress(f"guidance {scale:g}"))
            rows.append(score_row(f"guidance {scale:g}", few.prompts, drawn[scale], scale))
    known = ask(world, extent.others, "validation")
    images = draw(model, known.captions, default, extent.steps, progress("known compositions"))
    rows.append(score_row("known compositions", known.prompts, images, default))
    return Survey(
        sampling=_sampling(model, asked, extent, elapsed),
        facts=asked.facts_by_kind(),
        generated=rows[0],
        other_generated=tuple(rows[1:]),
        real=score_row("real scenes", asked.prompts, asked.images),
        reconstructed=score_row("reconstructions", asked.prompts, reconstructions),
        chance=chance_row("chance", asked),
        gallery=_gallery(model, asked, reconstructions, extent, drawn),
    )


def _sampling(model: LatentDiffusion, asked: Asked, extent: Extent, elapsed: float) -> Sampling:
    one = asked.captions[:1]
    return Sampling(
        sampler=chosen(second_stage(model), AUTO, None, extent.steps, DEFAULT_GUIDANCE).sampler.kind,
        steps=extent.steps,
        guidance=DEFAULT_GUIDANCE,
        batch=min(BATCH, len(asked.prompts)),
        seconds_alone=seconds_of(lambda: draw(model, one, DEFAULT_GUIDANCE, extent.steps)),
        seconds_in_batch=elapsed / len(asked.prompts),
    )


def _gallery(
    model: LatentDiffusion, asked: Asked, reconstructions: Tensor, extent: Extent, drawn: dict[float, Tensor]
) -> Gallery:
    shown = min(extent.shown, *(len(images) for images in drawn.values()))
    sheet = slice(shown, shown + extent.sheet)
    strips = slice(0, min(extent.strips, len(asked.prompts)))
    return Gallery(
        originals=asked.images,
        reconstructions=reconstructions,
        latent_maps=latent_maps(model, asked.images[0]),
        guidance=extent.guidance,
        prompts=prompts_shown(asked, [drawn[scale] for scale in extent.guidance], shown),
        sheet=drawn[DEFAULT_GUIDANCE][sheet],
        sheet_captions=tuple(asked.captions[sheet]),
        strip=denoising_strip(
            model,
            asked.captions[strips],
            list(range(len(asked.prompts))[strips]),
            DEFAULT_GUIDANCE,
            extent.steps,
            extent.strip_steps,
        ),
    )
