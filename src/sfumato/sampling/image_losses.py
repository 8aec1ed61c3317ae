"""Targets of image guidance: losses of decoded images (B, 3, H, W) -> (B,), 0 where the target is reached.

As in the paper's appendix C, each is -log p(y | image) of a Gaussian around a transform of the image: half a
squared difference, as a mean over the compared elements.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

Features = Callable[[Tensor], Sequence[Tensor]]
"""Images (B, 3, H, W) in [-1, 1] -> feature maps or vectors (B, ...), through which gradients flow."""


@dataclass(frozen=True, eq=False)
class LowResolution:
    """The image, averaged over areas, matches a small one: target (1 or B, 3, h, w) in [-1, 1]."""

    target: Tensor

    def __call__(self, images: Tensor) -> Tensor:
        target = self.target.to(images)
        h, w = target.shape[-2:]
        return 0.5 * (F.adaptive_avg_pool2d(images, (h, w)) - target).square().mean((1, 2, 3))


@dataclass(frozen=True, eq=False)
class Colour:
    """The image has a mean colour (3,) in [-1, 1] and, optionally, a standard deviation (3,) in each channel."""

    mean: Tensor
    std: Tensor | None = None

    @classmethod
    def of(cls, image: Tensor) -> "Colour":
        """The mean and standard deviation of an image (3, H, W)."""
        return cls(image.mean((1, 2)), image.std((1, 2), correction=0))

    def __call__(self, images: Tensor) -> Tensor:
        loss = 0.5 * (images.mean((2, 3)) - self.mean.to(images)).square().mean(1)
        if self.std is None:
            return loss
        spread = (images.var((2, 3), correction=0) + 1e-8).sqrt()
        return loss + 0.5 * (spread - self.std.to(images)).square().mean(1)


@dataclass(frozen=True, eq=False)
class FeatureMatch:
    """The image's features, of any network, match those of a target (1 or B, 3, H', W').

    Differences are measured against the target's mean square, map by map, so that no map dominates.
    """

    features: Features
    target: Tensor

    def __call__(self, images: Tensor) -> Tensor:
        with torch.no_grad():
            targets = self.features(self.target.to(images))
        total = images.new_zeros(len(images))
        for features, target in zip(self.features(images), targets, strict=True):
            unit = target.square().mean().clamp(min=1e-8)
            total = total + 0.5 * (features - target).flatten(1).square().mean(1) / unit
        return total / len(targets)


@dataclass(frozen=True, eq=False)
class Together:
    """The sum of several losses."""

    losses: tuple[Callable[[Tensor], Tensor], ...]

    def __call__(self, images: Tensor) -> Tensor:
        return torch.stack([loss(images) for loss in self.losses]).sum(0)
