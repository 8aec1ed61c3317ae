"""The latent of a fitted model: the numbers that say how easy it was to learn for stage 2."""

from sfumato.cards.first_stage import measure_autoencoder
from sfumato.cards.readings import readings
from sfumato.data.dataset import Dataset
from sfumato.model import LatentDiffusion
from sfumato.report.fit_result import LatentNumber

MEASURED = 256
"""Images at most whose latents are measured."""


def latent_numbers(model: LatentDiffusion, images: Dataset) -> tuple[LatentNumber, ...]:
    """What `sfumato evaluate-autoencoder` says of the latent, on some of the images. Raises UserError if none can be
    read."""
    found = measure_autoencoder(model, images, min(MEASURED, len(images)))
    return tuple(
        LatentNumber(name, found.metrics[name].value, reading.usual, reading.says, found.count)
        for name, reading in readings(found.metrics)
    )
