"""Rows of the tables that several pages have."""

from sfumato.report.format import duration, millions, rate
from sfumato.report.result import Training


def training_row(name: str, training: Training) -> list[str]:
    """Configuration, size, length and speed of a training."""
    return [
        name,
        training.config,
        millions(training.parameters),
        f"{training.steps:,}",
        f"{training.images:,}",
        rate(training.images_per_second),
        duration(training.seconds),
    ]
