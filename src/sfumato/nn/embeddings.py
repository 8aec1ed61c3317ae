"""Sinusoidal embedding of the diffusion time."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor


def timestep_embedding(timestep: Tensor, dim: int, max_period: float = 10000.0) -> Tensor:
    """[cos, sin] of the timestep at dim // 2 geometric frequencies (Ho et al. 2020, in the order of ADM and LDM).

    timestep (B,) integers or floats; returns (B, dim) float32, an odd dim is padded with a zero.
    """
    half = dim // 2
    places = torch.arange(half, dtype=torch.float32, device=timestep.device)  # a copy would wait for the device
    angles = timestep.float()[:, None] * torch.exp(-math.log(max_period) * places / half)
    return F.pad(torch.cat([angles.cos(), angles.sin()], 1), (0, dim - 2 * half))
