"""The page of a study of latent spaces: scores, what predicts them, and images of every space."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from sfumato.cards.readings import READINGS
from sfumato.report.svg import Series, line_chart
from sfumato.report.templating import render as fill
from sfumato.studies.folder import read_image
from sfumato.studies.latents.first import LATENTS_FILE, RECONSTRUCTIONS_FILE
from sfumato.studies.latents.plan import TOLERANCE, LatentsStudyConfig
from sfumato.studies.latents.result import FirstResult, SecondResult
from sfumato.studies.latents.scoring import Scorer
from sfumato.studies.latents.second import SAMPLES_FILE
from sfumato.studies.latents.spaces import SPACES
from sfumato.studies.latents.statistics import Prediction, Standing, conclusion, mean_curve, predictions, standings

SHOWN_METRICS = (
    "VIV",
    "effective-rank",
    "spectral-energy-0.25",
    "spectral-energy-0.5",
    "equivariance-error-scale",
    "equivariance-error-quarter-turn",
    "equivariance-error-flip",
)


def render(
    config: LatentsStudyConfig,
    scorer: Scorer,
    firsts: Mapping[str, FirstResult],
    results: Sequence[SecondResult],
    folder: Path,
    home: Path,
    machine: str,
    command: str,
) -> str:
    """The whole page for the second stages that are finished so far.

    Args:
        scorer: what the score is.
        firsts: by latent space.
        results: of the second stages.
        folder: the study's.
        home: of the first stages.
        machine: where the study ran, for the reader.
        command: the command line that repeats the study.
    """
    ranked = standings(results, scorer.better)
    headline, summary = conclusion(ranked, firsts, scorer.shown)
    metrics = [name for name in SHOWN_METRICS if all(name in first.metrics for first in firsts.values())]
    return fill(
        "study_latents.html",
        config=config,
        score=scorer.name,
        better=scorer.better,
        headline=headline,
        summary=summary,
        finished=len(results),
        total=len(config.spaces) * config.seeds,
        tolerance=TOLERANCE,
        steps=results[0].steps,
        parameters=results[0].parameters,
        scores=[_score_row(one, firsts[one.space], results, scorer) for one in ranked],
        chart=_chart(results, scorer),
        metrics=metrics,
        measured=[_metric_row(firsts[one.space], metrics) for one in ranked],
        usual=[[name, READINGS[name].usual, READINGS[name].says] for name in metrics],
        predictors=[_prediction_row(one) for one in predictions(list(firsts.values()), ranked, scorer.better)],
        spaces=[_gallery(one.space, results, folder, home) for one in ranked],
        machine=machine,
        command=command,
    )


def _score_row(one: Standing, first: FirstResult, results: Sequence[SecondResult], scorer: Scorer) -> list[str]:
    own = sorted((result for result in results if result.space == one.space), key=lambda result: result.seed)
    time = "not reached" if one.time is None else f"{one.time:.2f} ×"
    return [
        one.space,
        scorer.shown(one.score),
        "–" if one.spread is None else scorer.shown(one.spread),
        ", ".join(scorer.shown(result.score) for result in own),
        time,
        f"{first.psnr:.2f} dB",
        f"{round(first.apart, 2) + 0.0:+.2f}{'' if first.equal else ' (not equal)'}",  # + 0.0: no minus before zero
        f"{first.steps:,}",
        f"{first.seconds / 60:.1f}",
        f"{sum(result.seconds for result in own) / len(own) / 60:.1f}",
    ]


def _metric_row(first: FirstResult, metrics: Sequence[str]) -> list[str]:
    return [first.space, *(f"{first.metrics[name]:.3f}" for name in metrics)]


def _prediction_row(one: Prediction) -> list[str]:
    chance = "–" if one.chance is None else f"{one.chance:.0%}"
    return [one.name, one.better, f"{one.correlation:+.2f}", chance]


def _chart(results: Sequence[SecondResult], scorer: Scorer) -> Any:
    """The mean score of every latent space over the training of stage 2; its seeds are fainter."""
    series = []
    for tone, space in enumerate(dict.fromkeys(result.space for result in results)):
        own = [result.curve for result in results if result.space == space]
        series.append(Series(space, [(p.seconds / 60, p.score) for p in mean_curve(own)], tone))
        series += [Series("", [(p.seconds / 60, p.score) for p in curve], tone, True) for curve in own if len(own) > 1]
    return line_chart(series, "minutes of training, stage 2", scorer.name, scorer.better == "lower", 1036, 380)


def _gallery(space: str, results: Sequence[SecondResult], folder: Path, home: Path) -> dict[str, Any]:
    """Samples of the first seed, reconstructions and latents of a space."""
    seed = min(result.seed for result in results if result.space == space)
    return {
        "name": space,
        "says": SPACES[space].says,
        "source": SPACES[space].source,
        "samples": read_image(folder / f"{space}-seed{seed}" / SAMPLES_FILE),
        "reconstructions": read_image(home / space / RECONSTRUCTIONS_FILE),
        "latents": read_image(home / space / LATENTS_FILE),
    }
