"""A study's page: one HTML file with the paper's two charts, a table, images, and the conclusion for this data."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from markupsafe import Markup

from sfumato.report.svg import Series, line_chart
from sfumato.report.templating import render as fill
from sfumato.studies.context import sheet_name
from sfumato.studies.folder import read_image
from sfumato.studies.plan import Arm, Method, StudyConfig, methods, named
from sfumato.studies.result import ArmResult, comparison, methods_of, recommendation, standings

CHANNELS_SHOWN = 8


def render(
    config: StudyConfig, results: Sequence[ArmResult], folder: Path, network: str, machine: str, command: str
) -> str:
    """The whole page for the arms that are finished so far; their images are read from the study's `folder`.

    Args:
        network: the name of the feature network of the distances.
        machine: where the study ran, for the reader.
        command: the command line that repeats the study.
    """
    headline, summary = comparison(results) if config.codes else recommendation(results)
    best = standings(results)[0].method
    return fill(
        "study.html",
        config=config,
        headline=headline,
        summary=summary,
        finished=len(results),
        total=len(methods(config)) * config.seeds,
        network=network,
        training_chart=_chart(config, results, _while_training, "minutes of training, stage 1 included"),
        sampling_chart=_chart(config, results, _while_sampling, "images a second", log_x=True),
        numbers=[_numbers(config, result) for result in results],
        marked=[place for place, result in enumerate(results) if result.method == best],
        latents=[_latent(config, result) for result in results],
        galleries=[_gallery(config, results, folder, method) for method in methods_of(results)],
        machine=machine,
        command=command,
    )


Points = list[tuple[float, float]]


def _chart(
    config: StudyConfig,
    results: Sequence[ArmResult],
    points_of: Callable[[ArmResult], Points],
    x_label: str,
    log_x: bool = False,
) -> Markup:
    """The kernel distance of every arm; further seeds of an arm are fainter and share its name in the legend."""
    series = []
    for tone, method in enumerate(methods_of(results)):
        own = [result for result in results if result.method == method]
        for result in own:
            first = result is own[0]
            series.append(Series(named(config, method) if first else "", points_of(result), tone, faint=not first))
    return line_chart(series, x_label, "kernel distance", True, 1036, 380, log_x)


def _while_training(result: ArmResult) -> Points:
    """Figure 6 of the paper."""
    return [(point.seconds / 60, point.kernel) for point in result.curve]


def _while_sampling(result: ArmResult) -> Points:
    """Figure 7 of the paper."""
    return sorted((one.images_per_second, one.score.kernel) for one in result.sampling)


def _numbers(config: StudyConfig, result: ArmResult) -> list[str]:
    ceiling, final = result.ceiling, result.final
    return [
        f"{named(config, result.method)}, seed {result.seed}",
        f"{final.score.kernel:.4f}",
        f"{final.score.frechet or 0:.1f}",
        f"{final.images_per_second:.3g}",
        "–" if ceiling is None else f"{ceiling.score.kernel:.4f}",
        "–" if ceiling is None else f"{ceiling.psnr:.2f}",
        "–" if ceiling is None else f"{ceiling.ssim:.3f}",
        f"{result.first_steps:,} + {result.second_steps:,}",
        f"{(result.first_seconds + result.second_seconds) / 60:.1f}",
        f"{result.operations / 1e12:,.4g}",
        f"{result.autoencoder_parameters / 1e6:.2f} + {result.denoiser_parameters / 1e6:.2f}",
    ]


def _latent(config: StudyConfig, result: ArmResult) -> list[str]:
    return [
        f"{named(config, result.method)}, seed {result.seed}",
        " × ".join(map(str, result.latent)),
        f"{3 * result.factor**2 / result.latent[0]:.3g}",
        _by_channel(result.latent_mean),
        _by_channel(result.latent_std),
    ]


def _by_channel(values: Sequence[float]) -> str:
    shown = " ".join(f"{value:.2f}" for value in values[:CHANNELS_SHOWN])
    return shown + (f" … ({len(values)} in all)" if len(values) > CHANNELS_SHOWN else "")


def _gallery(config: StudyConfig, results: Sequence[ArmResult], folder: Path, method: Method) -> dict[str, Any]:
    """Samples and reconstructions of an arm's first seed."""
    result = next(result for result in results if result.method == method)
    home = folder / Arm(method, result.seed).name
    return {
        "name": named(config, method),
        "codes": method.codes,
        "steps": result.final.steps,
        "samples": read_image(home / sheet_name(result.final.steps)),
        "reconstructions": None if result.ceiling is None else read_image(home / "reconstructions.png"),
    }
