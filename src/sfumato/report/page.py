"""The demo's page: `templates/demo.html` filled with the numbers and images of a finished run."""

import math
from collections.abc import Sequence

from torch import Tensor

from sfumato.data.toyworld.facts import KINDS
from sfumato.evaluation.image_quality import psnr, ssim
from sfumato.report.curves import LogLines, training_curves
from sfumato.report.format import duration, shape
from sfumato.report.gallery import Gallery, PromptShown
from sfumato.report.result import DemoResult, ScoreRow
from sfumato.report.rows import training_row
from sfumato.report.svg import dot_plot
from sfumato.report.templating import render as fill
from sfumato.report.verdict import Verdict, verdict_of

PAPER = "https://arxiv.org/abs/2112.10752"
PAIRS_SHOWN = 8


def render(
    result: DemoResult,
    gallery: Gallery,
    stage_one: LogLines,
    stage_two: LogLines,
    commands: Sequence[tuple[str, Sequence[str]]],
) -> str:
    """The whole page. `stage_one`, `stage_two`: lines of the runs' logs; `commands`: (remark, command lines) each."""
    kinds = [kind for kind in KINDS if kind in result.generated.rates]
    return fill(
        "demo.html",
        result=result,
        gallery=gallery,
        commands=commands,
        paper=PAPER,
        shortened=_shortened(result),
        pairs=_pairs(gallery),
        channels=_channels(result),
        headings=_headings(gallery),
        prompts=[{"caption": prompt.caption, "columns": _columns(prompt)} for prompt in gallery.prompts],
        curves=training_curves(stage_one, stage_two),
        facts_total=sum(result.facts.values()),
        facts_plot=_facts_plot(result, kinds),
        score_head=["", "prompts", *kinds, "all facts", "all correct"],
        score_rows=_score_rows(result, kinds),
        trainings=[
            training_row("stage 1: autoencoder", result.autoencoder),
            training_row("stage 2: diffusion", result.diffusion),
        ],
        sampling_rows=_sampling_rows(result),
        phases=[[name, duration(seconds)] for name, seconds in result.phases.items()],
    )


def _shortened(result: DemoResult) -> list[str]:
    """The stages that a slow machine trained for fewer steps than configured."""
    trainings = ("stage 1", result.autoencoder), ("stage 2", result.diffusion)
    return [f"{t.steps} of {t.configured} steps of {stage}" for stage, t in trainings if t.configured is not None]


def _pairs(gallery: Gallery) -> list[tuple[Tensor, Tensor, float, float]]:
    """Original, reconstruction, PSNR and SSIM of the first held-out scenes."""
    originals, outputs = gallery.originals[:PAIRS_SHOWN], gallery.reconstructions[:PAIRS_SHOWN]
    quality = psnr(outputs, originals).tolist(), ssim(outputs, originals).tolist()
    return list(zip(originals, outputs, *quality, strict=True))


def _channels(result: DemoResult) -> list[list[str]]:
    return [
        [
            str(c),
            f"{channel.mean:+.3f}",
            f"{channel.std:.3f}",
            f"{channel.kurtosis:+.2f}",
            f"{channel.scaled_mean:+.3f}",
            f"{channel.scaled_std:.3f}",
        ]
        for c, channel in enumerate(result.first_stage.channels)
    ]


def _headings(gallery: Gallery) -> list[str]:
    """The headings of the columns of `_columns`."""
    return [*(f"guidance {scale:g}{' (off)' if scale == 1 else ''}" for scale in gallery.guidance), "real scene"]


def _columns(prompt: PromptShown) -> list[tuple[Tensor, Verdict]]:
    """Images of a prompt, one per guidance scale and a real scene, each with the reader's verdict."""
    return [(one.image, verdict_of(one.score)) for one in (*prompt.samples, prompt.real)]


def _facts_plot(result: DemoResult, kinds: Sequence[str]) -> str:
    compared = [
        ("generated", result.generated),
        ("real scenes", result.real),
        ("reconstructions", result.reconstructed),
        ("chance", result.chance),
    ]
    rows = [*kinds, "facts"]
    return dot_plot([*kinds, "all facts"], [(name, [row.rates.get(kind) for kind in rows]) for name, row in compared])


def _score_rows(result: DemoResult, kinds: Sequence[str]) -> list[list[str]]:
    rows = [result.generated, *result.other_generated, result.real, result.reconstructed, result.chance]
    total = sum(result.facts.values())
    stated = ["facts stated", "", *(str(result.facts.get(kind, 0)) for kind in kinds), str(total), ""]
    return [*(_score_row(row, kinds) for row in rows), stated]


def _score_row(row: ScoreRow, kinds: Sequence[str]) -> list[str]:
    shares = [f"{100 * row.rates[kind]:.1f}" if kind in row.rates else "–" for kind in (*kinds, "facts", "prompts")]
    return [row.name, str(row.prompts), *shares]


def _sampling_rows(result: DemoResult) -> list[list[str]]:
    sampling, stage = result.sampling, result.first_stage
    return [
        ["one image", f"{sampling.seconds_alone:.2f} s"],
        [f"per image in a batch of {sampling.batch}", f"{sampling.seconds_in_batch:.3f} s"],
        ["image", f"{shape(stage.image_shape)} = {math.prod(stage.image_shape):,} numbers"],
        ["latent", f"{shape(stage.latent_shape)} = {math.prod(stage.latent_shape):,} numbers, f = {stage.factor}"],
    ]
