"""The evaluator of a study: compares images with the data in the features of one named network."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from sfumato.checkpoint import load_tensors, save_tensors
from sfumato.data.dataset import Dataset
from sfumato.data.loader import sweep
from sfumato.evaluation.features import FeatureNetwork, pooled
from sfumato.evaluation.frechet import GaussianStatistics, frechet_distance
from sfumato.evaluation.kernel import kernel_distance
from sfumato.rng import generator

REFERENCE = 2048
"""At most this many images of the data are compared with the samples."""


@dataclass(frozen=True)
class Score:
    """The kernel distance (KID: 0 if both sets come from one distribution), its deviation over subsets, and FD."""

    kernel: float
    kernel_std: float
    frechet: float | None = None


@dataclass(frozen=True)
class Evaluator:
    """A feature network and the features (N, D) of the data's images.

    A study generates hundreds of images, not tens of thousands: the kernel distance, unbiased for any number, decides.
    A Fréchet distance of so few images depends as much on their number as on their content and is reported beside it.
    """

    network: FeatureNetwork
    reference: Tensor

    @classmethod
    def of(cls, network: FeatureNetwork, data: Dataset, cache: Path) -> "Evaluator":
        """An evaluator against evenly spread images of the data; their features are cached in the file `cache`."""
        key = f"{network.name} {network.sha256} {data.fingerprint()}"
        if cache.exists():
            tensors, numbers = load_tensors(cache)
            if numbers.get("key") == key:
                return cls(network, tensors["features"])
        found = pooled(network, (batch.images for batch in sweep(data, 32, rows(data, REFERENCE), unreadable=_pass)))
        save_tensors(cache, {"features": found}, {"key": key})
        return cls(network, found)

    def __call__(self, images: Tensor, frechet: bool = False) -> Score:
        """The score of images (N, 3, H, W) in [-1, 1]."""
        found = pooled(self.network, images.split(32))
        kernel = kernel_distance(found, self.reference, generator(0, "study", "kernel"), subsets=20, subset_size=1000)
        distance = None
        if frechet:
            distance = frechet_distance(GaussianStatistics.of(found), GaussianStatistics.of(self.reference))
        return Score(kernel.mean, kernel.std, distance)


def rows(data: Dataset, count: int) -> Sequence[int]:
    """At most `count` rows, spread evenly over the data."""
    n = len(data)
    return torch.linspace(0, n - 1, min(n, count)).round().long().tolist()


def _pass(row: int, error: Exception) -> None:
    pass
