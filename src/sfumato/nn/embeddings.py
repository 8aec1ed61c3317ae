"""Sinusoidal embedding of the diffusion time."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor


def timestep_embedding(
    timestep: Tensor, dim: int, max_period: float = 10000.0, includes_lowest: bool = False
) -> Tensor:
    """[cos, sin] of the timestep at dim // 2 geometric frequencies (Ho et al. 2020, in the order of ADM and LDM).

    timestep (B,) integers or floats; returns (B, dim) float32, an odd dim is padded with a zero. Frequencies go from 1
    down to 1 / max_period, which they end just above, as in ADM and LDM, or with `includes_lowest` include, as in DDPM.
    """
    half = dim // 2
    intervals = half - 1 if includes_lowest else half
    places = torch.arange(half, dtype=torch.float32, device=timestep.device)  # a copy would wait for the device
    angles = timestep.float()[:, None] * torch.exp(-math.log(max_period) * places / intervals)
    return F.pad(torch.cat([angles.cos(), angles.sin()], 1), (0, dim - 2 * half))
