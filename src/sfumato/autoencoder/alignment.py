"""Alignment of the latent with the features of a frozen network (VA-VAE, Yao et al. 2025, arXiv 2501.01423).

A latent that is near the features of a network of images, by a linear map, and whose positions resemble each other as
those features do, is easier to learn for stage 2. Both losses have a margin: what is closer than it costs nothing.
"""

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from sfumato.schema import Schema

COMPARED_SIDE = 32
"""Positions along a side at which distances are compared; larger maps are averaged to it first."""


class AlignmentConfig(Schema):
    """The latent's alignment with the feature map of a frozen network; its linear map is trained with the
    autoencoder and is no part of the model."""

    weight: float = Field(0.0, ge=0)
    """Norm of its gradient over the reconstruction's, at the encoder's last layer; 0: off; 0.1 as published."""
    features: str = "efficientnet-lite0"
    """The network: efficientnet-lite0 (extra offline; efficientnet-lite0@SIDE for another side of its input),
    inception, dinov2 or clip. Published results are with dinov2."""
    weights: str | None = None
    """Where its weights are: a file for inception, a folder or a name on the hub for dinov2 and clip."""
    cosine_margin: float = Field(0.5, ge=0, le=2)
    """Cosines between features and mapped latents above 1 minus this cost nothing."""
    distance_margin: float = Field(0.25, ge=0, le=2)
    """Differences between the similarities of two positions up to this cost nothing."""


def marginal_cosine(mapped: Tensor, features: Tensor, margin: float) -> Tensor:
    """The mean over positions of relu(1 − margin − cos(mapped, features)), both (B, D, h, w): a scalar (eq. 5)."""
    cosine = F.cosine_similarity(mapped.float(), features.float(), dim=1)
    return F.relu(1 - margin - cosine).mean()


def marginal_distances(z: Tensor, features: Tensor, margin: float) -> Tensor:
    """The mean over pairs of positions of relu(|cos(z_i, z_j) − cos(f_i, f_j)| − margin): a scalar (eq. 6).

    z (B, C, h, w) and features (B, D, h, w), of each image by itself.
    """
    return F.relu((similarities(z) - similarities(features)).abs() - margin).mean()


def similarities(x: Tensor) -> Tensor:
    """The cosines between all positions of (B, C, h, w): (B, N, N); of maps above COMPARED_SIDE averaged to it."""
    size = (min(x.shape[-2], COMPARED_SIDE), min(x.shape[-1], COMPARED_SIDE))
    unit = F.normalize(F.adaptive_avg_pool2d(x.float(), size).flatten(2), dim=1)
    return unit.transpose(1, 2) @ unit


def alignment(config: AlignmentConfig, z: Tensor, mapped: Tensor, features: Tensor) -> Tensor:
    """The sum of both losses, a scalar in float32.

    Args:
        config: the margins.
        z: latents (B, C, h, w).
        mapped: their linear map (B, D, h, w).
        features: (B, D, h', w'), resampled to (h, w).
    """
    with torch.autocast(z.device.type, enabled=False):
        found = features.float()
        if found.shape[-2:] != z.shape[-2:]:
            size = (z.shape[-2], z.shape[-1])
            found = F.interpolate(found, size, mode="bilinear", antialias=True, align_corners=False)
        cosine = marginal_cosine(mapped, found, config.cosine_margin)
        return cosine + marginal_distances(z, found, config.distance_margin)
