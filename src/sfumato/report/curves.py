"""Values of a training log as charts."""

from collections.abc import Mapping, Sequence
from typing import Any

from markupsafe import Markup

from sfumato.report.svg import Series, line_chart

LogLines = Sequence[Mapping[str, Any]]


def training_curves(stage_one: LogLines, stage_two: LogLines) -> list[tuple[Markup, str]]:
    """Losses and quality over both trainings: (chart, caption) each."""
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
            "Stage 1: PSNR of a fixed batch of held-out scenes, averaged weights.",
        ),
        (
            _batches_and_mean(points(stage_two, "loss"), smoothed, "loss", log=positive),
            f"Stage 2: the loss{_nature_of_loss(positive)}.",
        ),
    ]
    bits = points(stage_one, "bits_per_dimension")
    if bits:
        chart = line_chart([Series("bits per latent number", bits, 2)], "steps", "bits per number")
        charts.append((chart, "Stage 1: what the posterior carries."))
    return charts


def points(lines: LogLines, name: str) -> list[tuple[float, float]]:
    """(step, value) of every log line that has the value."""
    return [(float(line["step"]), float(line[name])) for line in lines if isinstance(line.get(name), int | float)]


def running_mean(values: Sequence[tuple[float, float]], memory: float = 0.8) -> list[tuple[float, float]]:
    """An exponential mean, corrected for its start."""
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
        [Series("a batch", batches, 0, faint=True), Series("running mean", mean, 0)], "steps", label, log=log
    )


def _nature_of_loss(positive: bool) -> str:
    """Of a loss whose weights are fixed, and of one that learns them and adds their logarithm."""
    if positive:
        return ", logarithmic; its floor is the noise that no network can predict"
    return " with learned weights: about the logarithm of the error, so it goes on below zero"
