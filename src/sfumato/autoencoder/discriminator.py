"""PatchGAN: classifies overlapping patches of an image as real or reconstructed (Isola et al. 2017)."""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal

from torch import Tensor, nn

Norm = Literal["batch", "group"]


class PatchDiscriminator(nn.Module):
    """4×4 convolutions, `layers` of stride 2, then two of stride 1; parameter names are those of published checkpoints.

    Args:
        image_channels: channels of the image.
        channels: width of the first layer; it doubles up to eightfold.
        layers: convolutions of stride 2; three give a receptive field of 70 pixels.
        norm: "batch" as the original; "group" does not depend on the batch, for small ones.
    """

    def __init__(self, image_channels: int = 3, channels: int = 64, layers: int = 3, norm: Norm = "batch") -> None:
        super().__init__()
        modules: list[nn.Module] = [nn.Conv2d(image_channels, channels, 4, stride=2, padding=1), nn.LeakyReLU(0.2)]
        width = channels
        for layer in range(1, layers + 1):
            previous, width = width, channels * min(2**layer, 8)
            stride = 2 if layer < layers else 1
            modules += [
                nn.Conv2d(previous, width, 4, stride=stride, padding=1, bias=False),
                nn.BatchNorm2d(width) if norm == "batch" else nn.GroupNorm(math.gcd(32, width), width),
                nn.LeakyReLU(0.2),
            ]
        modules.append(nn.Conv2d(width, 1, 4, stride=1, padding=1))
        self.main = nn.Sequential(*modules)
        for module in self.main:
            if isinstance(module, nn.Conv2d):
                nn.init.normal_(module.weight, 0.0, 0.02)
            elif isinstance(module, nn.BatchNorm2d | nn.GroupNorm):
                nn.init.normal_(module.weight, 1.0, 0.02)
                nn.init.zeros_(module.bias)

    def forward(self, image: Tensor) -> Tensor:
        """Image (B, image_channels, H, W) -> logits (B, 1, h, w), large where a patch looks real."""
        return self.main(image)


def smallest_image(layers: int) -> int:
    """The smallest side of an image that gives a logit: after `layers` halvings two more convolutions take a row
    each."""
    return 3 * 2**layers


@contextmanager
def frozen(module: nn.Module) -> Iterator[None]:
    """Inside, the module's parameters receive no gradients; its inputs do.

    For the generator's step: the discriminator is evaluated, and its own gradients stay untouched.
    """
    learning = [p for p in module.parameters() if p.requires_grad]
    for p in learning:
        p.requires_grad_(False)
    try:
        yield
    finally:
        for p in learning:
            p.requires_grad_(True)
