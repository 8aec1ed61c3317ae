"""Properties of a latent space that matter for a diffusion model: spectra and equivariance."""

import torch
import torch.nn.functional as F
from torch import Tensor

from sfumato.autoencoder.frequencies import cosines

ENERGY_BEYOND = (0.25, 0.5)
"""Shares of the frequency range beyond which the energy of a latent is reported, see `beyond`."""


def high_frequency_share(x: Tensor, above: float = 0.5) -> float:
    """The part of the variance of x (B, C, H, W) in the upper frequencies; see `share_above`."""
    return share_above(spectrum(x), above)


def spectrum(x: Tensor) -> Tensor:
    """The summed squares of the cosine transforms of (B, C, H, W), (C, H, W) float64; those of several batches can be
    added."""
    return dct2(x.double()).square().sum(dim=0)


def share_above(spectra: Tensor, above: float = 0.5) -> float:
    """The share of the variance in the upper frequencies, with equal weight for each channel.

    Latents with a larger share than the images are harder to model: a diffusion model generates coarse structure before
    fine (Skorokhodov et al. 2025). Upper are frequencies (u / H, v / W) with a maximum of `above` or more; the
    channels' means are left out.

    Args:
        spectra: (C, H, W), from `spectrum`.
        above: in (0, 1); 1 would be the finest frequency.

    Returns:
        A share in [0, 1]; for white noise about 1 − above².
    """
    H, W = spectra.shape[-2:]
    power = spectra.clone()
    power[:, 0, 0] = 0
    high = (torch.arange(H)[:, None] >= above * H) | (torch.arange(W) >= above * W)
    total = power.sum(dim=(1, 2)).clamp_min(torch.finfo(torch.float64).tiny)
    return ((power * high).sum(dim=(1, 2)) / total).mean().item()


def beyond(spectra: Tensor, threshold: float) -> float:
    """The share of the energy at frequencies with u + v > threshold · (H + W − 2), with equal weight for each channel.

    Spectral energy concentration as published ("Diffusing in the Right Space", arXiv 2606.03578, thresholds 0.25 and
    0.5); the constant part counts as low.

    Args:
        spectra: (C, H, W), from `spectrum`.
        threshold: in (0, 1).
    """
    H, W = spectra.shape[-2:]
    high = torch.arange(H)[:, None] + torch.arange(W) > threshold * (H + W - 2)
    total = spectra.sum(dim=(1, 2)).clamp_min(torch.finfo(torch.float64).tiny)
    return ((spectra * high).sum(dim=(1, 2)) / total).mean().item()


def dct2(x: Tensor) -> Tensor:
    """The orthonormal type-II cosine transform over the last two axes, (..., H, W)."""
    H, W = x.shape[-2:]
    return cosines(H).to(x) @ x @ cosines(W).to(x).T


def relative_error(output: Tensor, target: Tensor) -> float:
    """Mean squared error over the variance of `target` about its channels' means, (B, C, H, W); 1: unrelated."""
    a, b = output.double(), target.double()
    return ((a - b).square().mean() / (b - b.mean(dim=(0, 2, 3), keepdim=True)).square().mean()).item()


def halved(x: Tensor) -> Tensor:
    """(B, C, H, W) at half the size, antialiased: the change of scale under which equivariance is measured."""
    size = (max(1, x.shape[-2] // 2), max(1, x.shape[-1] // 2))
    return F.interpolate(x.float(), size, mode="bicubic", antialias=True, align_corners=False)
