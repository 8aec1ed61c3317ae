"""The page of a fit: `templates/fit.html` filled with the numbers and images of a finished run."""

from collections.abc import Sequence

from sfumato.evaluation.image_quality import psnr
from sfumato.report.curves import LogLines, training_curves
from sfumato.report.fit_result import FitGallery, FitResult, LatentNumber
from sfumato.report.format import duration, percent, shape
from sfumato.report.rows import training_row
from sfumato.report.templating import render as fill

PAPER = "https://arxiv.org/abs/2112.10752"
PAIRS_SHOWN = 16


def render(
    result: FitResult,
    gallery: FitGallery,
    stage_one: LogLines,
    stage_two: LogLines,
    commands: Sequence[tuple[str, Sequence[str]]],
) -> str:
    """The whole page. `stage_one`, `stage_two`: lines of the runs' logs; `commands`: (remark, command lines) each."""
    measured = "training images" if result.on_training else "held-out images"
    originals, outputs = gallery.originals[:PAIRS_SHOWN], gallery.reconstructions[:PAIRS_SHOWN]
    sampling = result.sampling
    return fill(
        "fit.html",
        result=result,
        gallery=gallery,
        measured=measured,
        paper=PAPER,
        pairs=list(zip(originals, outputs, psnr(outputs, originals).tolist(), strict=True)),
        curves=training_curves(stage_one, stage_two, measured),
        trainings=[
            training_row("stage 1: autoencoder", result.autoencoder),
            training_row("stage 2: diffusion", result.diffusion),
        ],
        sampling_rows=[
            ["one image", f"{sampling.seconds_alone:.2f} s"],
            [f"per image in a batch of {sampling.batch}", f"{sampling.seconds_in_batch:.3f} s"],
            ["image", shape(result.first_stage.image_shape)],
            ["latent", f"{shape(result.first_stage.latent_shape)}, f = {result.first_stage.factor}"],
        ],
        best=_agreeing(result.agreement.best) if result.agreement else [],
        worst=_agreeing(result.agreement.worst) if result.agreement else [],
        latent=[[one.name, _placed(one), one.usual, one.says] for one in result.latent],
        phases=[[name, duration(seconds)] for name, seconds in result.phases.items()],
        commands=commands,
    )


def _placed(number: LatentNumber) -> str:
    """The value, and whether it is below or above the usual ones."""
    return f"{number.value:.3g}" + (f" ({number.position})" if number.position else "")


def _agreeing(rows: Sequence[tuple[str, float, int]]) -> list[list[str]]:
    return [[name, percent(share), str(count)] for name, share, count in rows]
