"""A study's page: one HTML file with the paper's two charts, a table, pictures, and what follows for this data."""

from collections.abc import Sequence
from pathlib import Path

from PIL import Image
from torch import Tensor

from sfumato.pictures import from_pil
from sfumato.report.html import Markup, element, figure, image, table
from sfumato.report.style import CSS
from sfumato.report.svg import Series, line_chart
from sfumato.study.bench import sheet_name
from sfumato.study.plan import Arm, StudyConfig, named, ways
from sfumato.study.result import ArmResult, comparison, recommendation, standings, ways_of

SHEET_WIDTH = 520


def render(
    config: StudyConfig, results: Sequence[ArmResult], folder: Path, network: str, machine: str, command: str
) -> str:
    """The whole page, of the arms that are finished so far; their pictures are read from the study's `folder`.

    Args:
        network: the name of the judge's feature network.
        machine: where it was run, for the reader.
        command: what to type to repeat the study.
    """
    headline, said = comparison(results) if config.codes else recommendation(results)
    of = len(ways(config)) * config.seeds
    unfinished = Markup() if len(results) == of else element("p", f"{len(results)} of {of} trainings are finished.")
    head = element(
        "head",
        element("meta", charset="utf-8"),
        element("meta", name="viewport", content="width=device-width, initial-scale=1"),
        element("title", f"sfumato study: {headline}"),
        element("style", Markup(CSS)),
    )
    opening = element(
        "header",
        element("p", f"sfumato study {'baselines' if config.codes else 'downsampling'}", class_="eyebrow"),
        element("h1", headline),
        element("p", said, class_="lead"),
        unfinished,
    )
    main = element(
        "main", _training(config, results, network), _drawing(config, results, network), _numbers(config, results),
        _latents(config, results),        _pictures(config, results, folder), _conditions(config, network, command),
    )  # fmt: skip
    body = element("body", opening, main, element("footer", element("p", machine)))
    return "<!doctype html>\n" + element("html", head, body, lang="en") + "\n"


def _training(config: StudyConfig, results: Sequence[ArmResult], network: str) -> Markup:
    """The paper's figure 6."""
    series = []
    for tone, way in enumerate(ways_of(results)):
        own = [result for result in results if result.way == way]
        for result in own:
            points = [(moment.seconds / 60, moment.kernel) for moment in result.curve]
            series.append(Series(named(config, way), points, tone, faint=result is not own[0]))
    chart = line_chart(_named_once(series), "minutes of training, stage 1 included", "kernel distance", True, 1036, 380)
    note = (
        f"Kernel distance (KID) of {network}, less is better; fainter lines are further seeds. A line begins after its "
        "stage 1. As figure 6 of the paper."
    )
    return element("section", element("h2", "Quality against training time"), figure(chart, note))


def _drawing(config: StudyConfig, results: Sequence[ArmResult], network: str) -> Markup:
    """The paper's figure 7."""
    series = []
    for tone, way in enumerate(ways_of(results)):
        own = [result for result in results if result.way == way]
        for result in own:
            points = sorted((drawing.pictures_per_second, drawing.score.kernel) for drawing in result.drawings)
            series.append(Series(named(config, way), points, tone, faint=result is not own[0]))
    chart = line_chart(_named_once(series), "pictures a second", "kernel distance", True, 1036, 380, log_x=True)
    note = "Each line is one model at several numbers of sampling steps. As figure 7 of the paper."
    if config.codes:
        note += " A transformer is one point: it takes as many calls as a picture has codes."
    return element("section", element("h2", "Quality against speed of drawing"), figure(chart, note))


def _numbers(config: StudyConfig, results: Sequence[ArmResult]) -> Markup:
    best = standings(results)[0].way
    rows: list[list[str]] = []
    marked: list[int] = []
    for result in results:
        ceiling, final = result.ceiling, result.final
        if result.way == best:
            marked.append(len(rows))
        rows.append(
            [
                f"{named(config, result.way)}, seed {result.seed}",
                f"{final.score.kernel:.4f}",
                f"{final.score.frechet or 0:.1f}",
                f"{final.pictures_per_second:.3g}",
                "–" if ceiling is None else f"{ceiling.score.kernel:.4f}",
                "–" if ceiling is None else f"{ceiling.psnr:.2f}",
                "–" if ceiling is None else f"{ceiling.ssim:.3f}",
                f"{result.first_steps:,} + {result.second_steps:,}",
                f"{(result.first_seconds + result.second_seconds) / 60:.1f}",
                f"{result.operations / 1e12:,.4g}",
                f"{result.autoencoder_parameters / 1e6:.2f} + {result.denoiser_parameters / 1e6:.2f}",
            ]
        )
    head = ["", "KID", "FD", "pictures/s", "ceiling KID", "PSNR", "SSIM", "steps", "minutes", "TFLOPs", "M parameters"]
    note = element(
        "p",
        "Ceiling: of reconstructions of held-out pictures; samples cannot be much better. The best of the numbers of "
        "sampling steps is shown. FD of so few pictures compares the rows of this table and nothing else.",
        class_="note",
    )
    return element("section", element("h2", "In numbers"), table(head, rows, marked=marked), note)


def _latents(config: StudyConfig, results: Sequence[ArmResult]) -> Markup:
    def told(values: Sequence[float]) -> str:
        shown = " ".join(f"{value:.2f}" for value in values[:8])
        return shown + (f" … ({len(values)} in all)" if len(values) > 8 else "")

    rows = [
        [
            f"{named(config, result.way)}, seed {result.seed}",
            " × ".join(map(str, result.latent)),
            f"{3 * result.factor**2 / result.latent[0]:.3g}",
            told(result.latent_mean),
            told(result.latent_std),
        ]
        for result in results
    ]
    head = ["", "latent", "numbers a number stands for", "mean by channel", "deviation by channel"]
    return element("section", element("h2", "Latents"), table(head, rows))


def _pictures(config: StudyConfig, results: Sequence[ArmResult], folder: Path) -> Markup:
    parts = []
    for way in ways_of(results):
        result = next(result for result in results if result.way == way)
        home, name = folder / Arm(way, result.seed).name, named(config, way)
        samples = image(_read(home / sheet_name(result.final.steps)), f"samples of {name}", width=SHEET_WIDTH)
        parts.append(element("h3", name))
        what = "codes" if way.codes else "steps"
        parts.append(figure(samples, f"Uncurated samples, {result.final.steps} {what} each, seeds from 0."))
        if result.ceiling is not None:
            sheet = _read(home / "reconstructions.png")
            shown = image(sheet, f"reconstructions of {name}", width=SHEET_WIDTH)
            parts.append(figure(shown, "Held-out pictures, each with its reconstruction."))
    return element("section", element("h2", "Pictures"), *parts)


def _conditions(config: StudyConfig, network: str, command: str) -> Markup:
    equal = "seconds of training" if config.equal == "time" else "operations"
    said = (
        f"Every arm has the same {equal} for both stages together ({config.budget / 60:.3g} minutes"
        f"{'' if config.equal == 'time' else ' at the reference arm’s pace'}), {config.first_share:.0%} of them for "
        f"stage 1 where there is one, and a {'denoiser or transformer' if config.codes else 'denoiser'} of about "
        f"{config.parameters / 1e6:.3g} M parameters. Encoding "
        f"and judging are not counted. {config.samples} pictures are drawn for each judgement and compared, in the "
        f"features of {network}, with up to 2,048 of the training data."
    )
    return element("section", element("h2", "How it was done"), element("p", said), element("pre", command))


def _named_once(series: Sequence[Series]) -> list[Series]:
    """Only the first line of a way in the legend: further seeds share its name there."""
    return [Series("" if s.faint else s.name, s.points, s.tone, s.faint) for s in series]


def _read(path: Path) -> Tensor:
    with Image.open(path) as opened:
        return from_pil(opened)
