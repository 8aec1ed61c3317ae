"""How easy a latent space is for a diffusion model: spectra and equivariance, of tensors."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor


def high_frequency_share(x: Tensor, above: float = 0.5) -> float:
    """The part of the variance of x (B, C, H, W) in the upper frequencies; see `share_above`."""
    return share_above(spectrum(x), above)


def spectrum(x: Tensor) -> Tensor:
    """The summed squares of the cosine transforms of (B, C, H, W), (C, H, W) float64: add those of batches up."""
    return dct2(x.double()).square().sum(dim=0)


def share_above(spectra: Tensor, above: float = 0.5) -> float:
    """The part of the variance that lies in the upper frequencies, each channel counting the same.

    Latents with more of it than the images have are harder to model: a diffusion model finds coarse before fine
    (Skorokhodov et al. 2025). Frequencies (u / H, v / W) count whose larger one is `above` or more; channels' means
    are left out.

    Args:
        spectra: (C, H, W), of `spectrum`.
        above: in (0, 1); 1 would be the finest frequency.

    Returns:
        A share in [0, 1]; white noise has 1 − above² of it nearly.
    """
    H, W = spectra.shape[-2:]
    power = spectra.clone()
    power[:, 0, 0] = 0
    high = (torch.arange(H)[:, None] >= above * H) | (torch.arange(W) >= above * W)
    total = power.sum(dim=(1, 2)).clamp_min(torch.finfo(torch.float64).tiny)
    return ((power * high).sum(dim=(1, 2)) / total).mean().item()


def dct2(x: Tensor) -> Tensor:
    """The orthonormal type-II cosine transform over the last two axes, (..., H, W)."""
    H, W = x.shape[-2:]
    return _basis(H).to(x) @ x @ _basis(W).to(x).T


def _basis(n: int) -> Tensor:
    """(n, n): row u is the u-th cosine."""
    u, i = torch.arange(n, dtype=torch.float64)[:, None], torch.arange(n, dtype=torch.float64)
    basis = torch.cos(math.pi * (i + 0.5) * u / n) * (2 / n) ** 0.5
    basis[0] /= 2**0.5
    return basis


def relative_error(found: Tensor, wanted: Tensor) -> float:
    """Mean squared error over the variance of `wanted` about its channels' means, (B, C, H, W); 1: no relation."""
    a, b = found.double(), wanted.double()
    return ((a - b).square().mean() / (b - b.mean(dim=(0, 2, 3), keepdim=True)).square().mean()).item()


def halved(x: Tensor) -> Tensor:
    """(B, C, H, W) at half the size, antialiased: the change of scale under which equivariance is measured."""
    size = (max(1, x.shape[-2] // 2), max(1, x.shape[-1] // 2))
    return F.interpolate(x.float(), size, mode="bicubic", antialias=True, align_corners=False)
