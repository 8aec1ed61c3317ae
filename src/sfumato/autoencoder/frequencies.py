"""The cosine transform of images and latents, and removing their upper frequencies."""

import math

import torch
from torch import Tensor


def cosines(n: int) -> Tensor:
    """The orthonormal type-II cosine transform as a matrix (n, n), float64: row u is the u-th cosine."""
    u, i = torch.arange(n, dtype=torch.float64)[:, None], torch.arange(n, dtype=torch.float64)
    basis = torch.cos(math.pi * (i + 0.5) * u / n) * (2 / n) ** 0.5
    basis[0] /= 2**0.5
    return basis


def low_passed(x: Tensor, share: float) -> Tensor:
    """(B, C, H, W) without the cosines u >= share · H and v >= share · W; the constant part always stays.

    The same share removes the same part of an image's frequency range and of its latent's, whatever the factor.
    """
    with torch.autocast(x.device.type, enabled=False):
        wide = x if x.dtype == torch.float64 else x.float()
        rows, columns = (_projection(n, share).to(wide) for n in x.shape[-2:])
        return (rows @ wide @ columns).to(x.dtype)


def _projection(n: int, share: float) -> Tensor:
    """(n, n), symmetric: onto the lower frequencies."""
    kept = cosines(n)[: max(1, math.ceil(share * n))]
    return kept.T @ kept
