"""The latent spaces that a study compares: how each first stage is regularised, and where that was published."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

PLAIN = "plain"
"""The first stage without a regulariser, which the others are compared with."""


@dataclass(frozen=True)
class LatentSpace:
    """How a first stage differs from the plain one.

    Attributes:
        name: as in `--spaces`.
        says: what is done, in a sentence without its full stop.
        source: where it was published; empty for the plain one.
        loss: changed fields of `loss`.
        model: changed fields of `model`.
        alone: share of the steps, at the end, in which the decoder alone is trained, with the latents as they are.
    """

    name: str
    says: str
    source: str = ""
    loss: Mapping[str, Any] = field(default_factory=dict)
    model: Mapping[str, Any] = field(default_factory=dict)
    alone: float = 0.0


_ALL = (
    LatentSpace(PLAIN, "no regulariser but the small KL weight"),
    LatentSpace(
        "equivariance",
        "in half of the steps the scaled and turned latent must decode to the scaled and turned image",
        "EQ-VAE, arXiv 2502.09509; scale equivariance, arXiv 2502.14831",
        loss={"equivariance": {"probability": 0.5, "small_images": 0.25}},
    ),
    LatentSpace(
        "noise",
        "the decoder reconstructs from a noised latent, γ = 3; then the decoder alone is trained without noise",
        "l-DeTok, arXiv 2507.15856",
        loss={"latent_noise": {"gamma": 3.0}},
        alone=0.25,
    ),
    LatentSpace(
        "mild-noise",
        "the decoder reconstructs from a latent that is noised for half of the samples, γ = 1; then the decoder alone "
        "is trained without noise",
        "after l-DeTok, arXiv 2507.15856",
        loss={"latent_noise": {"gamma": 1.0, "share": 0.5}},
        alone=0.25,
    ),
    LatentSpace(
        "spectral",
        "in half of the steps the latent without its upper frequencies must decode to the image without its own",
        "after Denoising-VAE, arXiv 2511.12633",
        loss={"spectral": {"probability": 0.5}},
    ),
    LatentSpace(
        "aligned",
        "a linear map of the latent must resemble the features of a frozen network, EfficientNet-Lite0",
        "VA-VAE, arXiv 2501.01423, with another network",
        loss={"alignment": {"weight": 0.1, "features": "efficientnet-lite0@128"}},
    ),
    LatentSpace(
        "reflect",
        "every convolution sees the image mirrored at its border instead of zeros",
        model={"padding": "reflect"},
    ),
)

SPACES: Mapping[str, LatentSpace] = MappingProxyType({space.name: space for space in _ALL})
"""All latent spaces by name."""
