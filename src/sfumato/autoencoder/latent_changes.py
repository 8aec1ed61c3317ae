"""Regularisers of the latent that change what the decoder is given in training: equivariance, fewer frequencies, noise.

A latent whose scaled or turned version decodes to the scaled or turned image has less energy in its high frequencies
and is easier to learn for stage 2 (EQ-VAE, Kouzelis et al. 2025, arXiv 2502.09509; scale equivariance alone,
Skorokhodov et al. 2025, arXiv 2502.14831). Upper frequencies of a latent that its lower ones do not need are noise for
stage 2; spectral self-regularisation suppresses them (Denoising-VAE, Xiang et al. 2025, arXiv 2511.12633). A decoder
that reconstructs from a noised latent tolerates the errors of stage 2 (l-DeTok, Yang et al. 2025, arXiv 2507.15856).
None of them changes the networks.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from sfumato.autoencoder.frequencies import low_passed
from sfumato.schema import Schema

SMALLEST_LATENT = 4
"""Numbers along a side of a latent below which it is not scaled: there is nothing left to learn from."""


class EquivarianceConfig(Schema):
    """In a share of the steps the decoder sees the scaled and turned latent and is asked for the scaled and turned
    image."""

    probability: float = Field(0.0, ge=0, le=1)
    """Share of the steps with a changed latent; 0: off; 0.5 as published."""
    smallest: float = Field(0.25, gt=0, le=1)
    """Scales are chosen evenly between this and 1; 1: none."""
    turns: bool = True
    """Also turn by quarter turns; false for text, medical images, and wherever orientation carries meaning."""
    small_images: float = Field(0.0, ge=0, le=1)
    """Share of the other steps in which a scaled image is encoded and reconstructed instead; 0.25 as published."""


class SpectralConfig(Schema):
    """In a share of the steps the decoder sees the latent without its upper frequencies and is asked for the image
    without its own.

    The lower frequencies of the latent then contain the lower frequencies of the image, at every level of detail, and
    the upper ones only what is left. Denoising-VAE (arXiv 2511.12633) regularises a latent by itself at several
    levels, and Spectrum Matching (arXiv 2603.14645) masks the spectra of latent and image alike for its decoder; the
    cosine transform, the cut-offs and their shares here are this program's own.
    """

    probability: float = Field(0.0, ge=0, le=1)
    """Share of the steps in which frequencies are removed; 0: off."""
    lowest: float = Field(0.25, gt=0, lt=1)
    """Share of the frequency range, along each side, that is kept at least; chosen evenly between this and 1."""


class LatentNoiseConfig(Schema):
    """The decoder reconstructs from z' = (1 − τ) z + τ γ s ε with τ ~ U(0, 1) for each sample, s the latent's standard
    deviation."""

    gamma: float = Field(0.0, ge=0, le=10)
    """Strength γ of the noise; 0: off; 3 as published, followed by a training of the decoder alone without noise."""
    share: float = Field(1.0, gt=0, le=1)
    """Share of the samples that are noised; the milder form is 0.5."""


@dataclass(frozen=True)
class LatentChange:
    """The changes to image and latent of a micro-batch.

    Attributes:
        encoded: (h, w) of the latent of the scaled image that is encoded; None: the image as it is.
        decoded: (h, w) that the latent is scaled to before it is decoded; None: as it is.
        turns: quarter turns of the latent before it is decoded, and of the image that is asked for.
        kept: share of the frequencies of both that is kept; None: all.
        noise_share: (B,) τ γ-free shares τ in [0, 1]; None without noise.
        noise: (B, C, h, w) N(0, 1), at least as large as the latent that is decoded.
        gamma: γ.
    """

    encoded: tuple[int, int] | None = None
    decoded: tuple[int, int] | None = None
    turns: int = 0
    kept: float | None = None
    noise_share: Tensor | None = None
    noise: Tensor | None = None
    gamma: float = 0.0

    def input(self, image: Tensor, factor: int) -> Tensor:
        """The image (B, C, H, W) that is encoded."""
        return image if self.encoded is None else scaled(image, _pixels(self.encoded, factor))

    def target(self, image: Tensor, factor: int) -> Tensor:
        """The image that the decoder is asked for, from the one that was encoded."""
        changed = image if self.decoded is None else scaled(image, _pixels(self.decoded, factor))
        return self._turned_and_filtered(changed)

    def latent(self, z: Tensor) -> Tensor:
        """The decoder's input, from the encoder's output (B, C, h, w)."""
        changed = self._turned_and_filtered(z if self.decoded is None else scaled(z, self.decoded))
        if self.noise is None or self.noise_share is None:
            return changed
        h, w = changed.shape[-2:]
        tau = self.noise_share.to(z)[:, None, None, None]
        spread = z.detach().float().std(dim=(0, 2, 3), correction=0).to(z)[:, None, None]
        return (1 - tau) * changed + tau * self.gamma * spread * self.noise[..., :h, :w].to(z)

    def _turned_and_filtered(self, x: Tensor) -> Tensor:
        turned = x.rot90(self.turns, dims=(-2, -1)) if self.turns else x
        return turned if self.kept is None else low_passed(turned, self.kept)


NO_CHANGE = LatentChange()


def choose_geometry(config: EquivarianceConfig, latent: tuple[int, int], g: torch.Generator) -> LatentChange:
    """The scale and turn of one step, for latents of (h, w); all processes of a run choose the same."""
    change, small, scale = torch.rand(3, generator=g).tolist()
    turns = int(torch.randint(1, 4, (), generator=g)) if config.turns else 0
    size = _scaled_size(latent, config.smallest, scale)
    if change < config.probability:
        return LatentChange(decoded=size, turns=turns)
    if small < config.small_images:
        return LatentChange(encoded=size)
    return NO_CHANGE


def choose_kept(config: SpectralConfig, g: torch.Generator) -> float | None:
    """The share of the frequencies that is kept in one step; None: all."""
    change, position = torch.rand(2, generator=g).tolist()
    return config.lowest + (1 - config.lowest) * position if change < config.probability else None


def smallest_latent(config: EquivarianceConfig, latent: tuple[int, int]) -> tuple[int, int]:
    """The smallest (h, w) that `choose_geometry` gives."""
    if config.probability == 0 and config.small_images == 0:
        return latent
    return _scaled_size(latent, config.smallest, 0.0) or latent


def _scaled_size(latent: tuple[int, int], smallest: float, position: float) -> tuple[int, int] | None:
    """(h, w) at a scale that lies at `position` in [0, 1) between the smallest and 1; None where it is the latent's."""
    side = min(latent)
    least = max(SMALLEST_LATENT, round(smallest * side))
    if least >= side:
        return None
    chosen = least + int(position * (side - least))
    return max(1, round(latent[0] * chosen / side)), max(1, round(latent[1] * chosen / side))


def _pixels(size: tuple[int, int], factor: int) -> tuple[int, int]:
    return size[0] * factor, size[1] * factor


def scaled(x: Tensor, size: tuple[int, int]) -> Tensor:
    """(B, C, H, W) at another size, bicubic and antialiased."""
    return F.interpolate(x.float(), size, mode="bicubic", antialias=True, align_corners=False).to(x.dtype)
