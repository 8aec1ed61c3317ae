"""How easy a latent space is for a diffusion model: spectra and equivariance, of tensors."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor


def high_frequency_share(x: Tensor, above: float = 0.5) -> float:
    """The part of the variance that lies in the discrete cosine transform's upper frequencies.

    Latents with more of it than the pictures have are harder to model: a diffusion model finds coarse before fine
    (Skorokhodov et al. 2025). Frequencies (u / H, v / W) count whose larger one is `above` or more; the mean of each
    channel is left out.

    Args:
        x: (B, C, H, W).
        above: in (0, 1), 1 would be the finest frequency.

    Returns:
        A share in [0, 1]; white noise has 1 − above² of it nearly.
    """
    H, W = x.shape[-2:]
    power = dct2(x.double()).square().mean(dim=(0, 1))
    power[0, 0] = 0
    high = (torch.arange(H)[:, None] >= above * H) | (torch.arange(W) >= above * W)
    return (power[high].sum() / power.sum()).item()


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
