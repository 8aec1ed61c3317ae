"""The latent of a fitted model: the numbers that show how easy it was to learn for stage 2."""

from sfumato.cards.first_stage import measure_autoencoder
from sfumato.cards.readings import position, readings
from sfumato.data.dataset import Dataset
from sfumato.fit.plan import FitPlan
from sfumato.model import LatentDiffusion
from sfumato.report.fit_result import LatentNumber

FEWEST, MOST = 64, 256
"""Images whose latents are measured, where there are this many."""
SHARE = 0.01
"""Of the whole time, for more than the fewest."""
PASSES = 5 / 3
"""Cost of an image over that of a training step: it is encoded four times and decoded once."""


def latent_numbers(model: LatentDiffusion, images: Dataset, plan: FitPlan) -> tuple[LatentNumber, ...]:
    """The latent's numbers of `sfumato evaluate-autoencoder`, on some of the images.

    Raises UserError if none can be read.
    """
    affordable = int(SHARE * plan.seconds / (PASSES * max(plan.first.image_seconds, 1e-6)))
    found = measure_autoencoder(model, images, min(max(FEWEST, min(MOST, affordable)), len(images)))
    return tuple(
        LatentNumber(name, value, reading.usual, reading.says, found.count, position(value, reading.usual))
        for name, reading in readings(found.metrics)
        for value in (found.metrics[name].value,)
    )
