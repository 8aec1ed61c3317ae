"""Charts of the values in a training log."""

from collections.abc import Mapping, Sequence
from typing import Any

from markupsafe import Markup

from sfumato.report.svg import Series, line_chart

LogLines = Sequence[Mapping[str, Any]]


def training_curves(
    stage_one: LogLines, stage_two: LogLines, measured: str = "held-out scenes"
) -> list[tuple[Markup, str]]:
    """Losses and quality over the training of both stages: (chart, caption) each.

    `measured`: what PSNR is measured on.
    """
    reconstruction = points(stage_one, "reconstruction")
    smoothed = points(stage_two, "loss_smoothed")
    positive = all(value > 0 for _, value in smoothed)
    charts = [
        (
            _batches_and_mean(reconstruction, running_mean(reconstruction), "reconstruction loss", log=True),
            "Stage 1: reconstruction loss, logarithmic.",
        ),
        (
            line_chart([Series("PSNR in dB", points(stage_one, "psnr"), 1)], "steps", "PSNR"),
            f"Stage 1: PSNR of a fixed batch of {measured}, EMA weights.",
        ),
        (
            _batches_and_mean(points(stage_two, "loss"), smoothed, "loss", log=positive),
            f"Stage 2: loss{_loss_note(positive)}.",
        ),
    ]
    bits = points(stage_one, "bits_per_dimension")
    if bits:
        chart = line_chart([Series("bits per latent dimension", bits, 2)], "steps", "bits per dimension")
        charts.append((chart, "Stage 1: information in the posterior (KL)."))
    return charts


def points(lines: LogLines, name: str) -> list[tuple[float, float]]:
    """(step, value) of every log line that has the value."""
    return [(float(line["step"]), float(line[name])) for line in lines if isinstance(line.get(name), int | float)]


def running_mean(values: Sequence[tuple[float, float]], memory: float = 0.8) -> list[tuple[float, float]]:
    """An exponential moving average with bias correction."""
    mean = weight = 0.0
    smooth = []
    for x, y in values:
        mean, weight = memory * mean + (1 - memory) * y, memory * weight + (1 - memory)
        smooth.append((x, mean / weight))
    return smooth


def _batches_and_mean(
    batches: Sequence[tuple[float, float]], mean: Sequence[tuple[float, float]], label: str, log: bool
) -> Markup:
    return line_chart(
        [Series("batch", batches, 0, faint=True), Series("running mean", mean, 0)], "steps", label, log=log
    )


def _loss_note(positive: bool) -> str:
    """The caption for a loss with fixed weights, or for one with learned weights and their logarithm added."""
    if positive:
        return ", logarithmic; it cannot fall below the unpredictable part of the noise"
    return " with learned weights: approximately the logarithm of the error, so it falls below zero"
