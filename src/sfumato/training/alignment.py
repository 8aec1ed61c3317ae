"""Aligning stage 1's latents with a frozen network's features: the network, and a trained linear map."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from sfumato import rng
from sfumato.autoencoder.alignment import AlignmentConfig
from sfumato.evaluation.features import FeatureNetwork
from sfumato.evaluation.table import load_network
from sfumato.training.workers import Workers


@dataclass(frozen=True)
class LatentAlignment:
    """The frozen feature network, and the 1×1 convolution from latents to its features, which is trained."""

    network: FeatureNetwork
    mapping: nn.Conv2d

    def features(self, image: Tensor) -> Tensor:
        """The network's map (B, D, h', w') of images (B, 1 or 3, H, W), on their device."""
        return self.network.maps(image).to(image.device)


def build_alignment(config: AlignmentConfig, channels: int, seed: int, workers: Workers) -> LatentAlignment | None:
    """The alignment of latents with `channels` channels, initialised from the run's seed; None where it is off.

    Raises UserError for an unknown network, one without its weights, or one without a map of features.
    """
    if config.weight == 0:
        return None
    network = load_network(config.features, config.weights)
    dim = network.maps(torch.zeros(1, 3, *network.size)).shape[1]
    with rng.seeded(seed, "weights", "alignment", device=torch.device("cpu")):
        mapping = nn.Conv2d(channels, dim, 1, bias=False)
    return LatentAlignment(network.to(workers.device), workers.place(mapping))
