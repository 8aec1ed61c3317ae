"""The kernel distance of a fit's samples: one number for how far they are from real images."""

from torch import Tensor

from sfumato import rng
from sfumato.evaluation.features import EFFICIENTNET, pooled
from sfumato.evaluation.kernel import kernel_distance
from sfumato.evaluation.table import load_network
from sfumato.report.fit_result import KernelScore

SIDE = 64
"""Images are compared at this size: ten times cheaper than 224 pixels."""
FEATURES = f"{EFFICIENTNET}@{SIDE}"
LEAST = 8
"""Images of each; with fewer the number is mostly chance."""
BATCH = 32


def kernel_score(samples: Tensor, real: Tensor, training: Tensor) -> KernelScore | None:
    """The distance of samples from real images, and for comparison that of training images from these.

    All (N, 3, H, W) in [-1, 1]; None where one has fewer than LEAST. Raises UserError if the feature network is not
    installed.
    """
    if min(len(samples), len(real), len(training)) < LEAST:
        return None
    network = load_network(FEATURES)
    of_samples, of_real, of_training = (pooled(network, images.split(BATCH)) for images in (samples, real, training))
    found = kernel_distance(of_samples, of_real, rng.generator(0, "fit", "kd"))
    reference = kernel_distance(of_training, of_real, rng.generator(0, "fit", "kd"))
    return KernelScore(found.mean, reference.mean, len(samples), len(real), FEATURES)
