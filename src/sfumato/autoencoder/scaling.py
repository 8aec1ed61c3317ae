"""Raw latent of the autoencoder <-> model latent of the diffusion model: zero mean and unit variance per channel.

Rombach et al. 2022, App. G, divide by one number, the latent's standard deviation; that is a special case of this.
"""

from typing import Self

import torch
from torch import Tensor, nn

from sfumato.autoencoder.bottleneck import widen


class Scaling(nn.Module):
    """model = (raw − shift) · scale, per channel. Two buffers (C,), so that it is saved in checkpoints."""

    shift: Tensor
    scale: Tensor

    def __init__(self, shift: Tensor, scale: Tensor) -> None:
        """Raises ValueError if the shapes differ, or a scale is not positive and finite."""
        super().__init__()
        if shift.dim() != 1 or shift.shape != scale.shape:
            raise ValueError(
                f"shift {tuple(shift.shape)} and scale {tuple(scale.shape)} must both have the shape (channels,)"
            )
        if not scale.is_meta and not (bool(torch.isfinite(scale).all()) and bool((scale > 0).all())):
            raise ValueError(f"scale {scale.tolist()} must be positive and finite: does a latent channel never vary?")
        self.register_buffer("shift", shift.detach().float().clone())
        self.register_buffer("scale", scale.detach().float().clone())

    @classmethod
    def from_factor(cls, channels: int, scale_factor: float) -> Self:
        """The original's single factor: model = scale_factor · raw."""
        return cls(torch.zeros(channels), torch.full((channels,), float(scale_factor)))

    @classmethod
    def from_statistics(cls, mean: Tensor, std: Tensor) -> Self:
        """Whitens latents with this mean and standard deviation, both (C,)."""
        return cls(mean, 1.0 / std.double())

    def to_model(self, raw: Tensor) -> Tensor:
        """Raw (B, C, h, w) -> model latent."""
        return (raw - self._broadcast(self.shift, raw)) * self._broadcast(self.scale, raw)

    def to_raw(self, model: Tensor) -> Tensor:
        """Model latent (B, C, h, w) -> raw."""
        return model / self._broadcast(self.scale, model) + self._broadcast(self.shift, model)

    def _broadcast(self, values: Tensor, like: Tensor) -> Tensor:
        if like.shape[1] != values.shape[0]:
            raise ValueError(f"latent has {like.shape[1]} channels, the scaling {values.shape[0]}")
        return values.to(like)[:, None, None]


class LatentStatistics:
    """Mean, standard deviation and excess kurtosis per channel of latents that arrive in batches (float64 on the CPU).

    Power sums are taken about the first batch's mean, so that a large offset costs no digits.
    """

    def __init__(self) -> None:
        self._count = 0
        self._origin = torch.empty(0)
        self._sums = torch.empty(0)

    def update(self, latent: Tensor) -> None:
        """Adds a batch (B, C, h, w)."""
        C = latent.shape[1]
        x = widen(latent.detach()).cpu().double().transpose(0, 1).reshape(C, -1)
        if self._count == 0:
            self._origin = x.mean(dim=1)
            self._sums = torch.zeros(4, C, dtype=torch.float64)
        d = x - self._origin[:, None]
        self._sums = self._sums + torch.stack([(d**p).sum(dim=1) for p in (1, 2, 3, 4)])
        self._count += x.shape[1]

    @property
    def count(self) -> int:
        """Positions seen: numbers per channel."""
        return self._count

    def _moments(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        if self._count == 0:
            raise ValueError("LatentStatistics: no batch has been added")
        m1, m2, m3, m4 = self._sums / self._count
        return m1, m2, m3, m4

    def mean(self) -> Tensor:
        """(C,)"""
        return self._origin + self._moments()[0]

    def std(self) -> Tensor:
        """(C,), of the population."""
        m1, m2, _, _ = self._moments()
        return (m2 - m1.square()).clamp_min(0).sqrt()

    def kurtosis(self) -> Tensor:
        """(C,): excess kurtosis, 0 for a Gaussian."""
        m1, m2, m3, m4 = self._moments()
        fourth = m4 - 4 * m1 * m3 + 6 * m1**2 * m2 - 3 * m1**4
        return fourth / (m2 - m1.square()).square() - 3

    def scaling(self) -> Scaling:
        """The scaling that whitens these latents."""
        return Scaling.from_statistics(self.mean(), self.std())
