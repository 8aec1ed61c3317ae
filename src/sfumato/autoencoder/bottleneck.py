"""The latent between encoder and decoder: a Gaussian posterior (KL) or a learned codebook (VQ).

Rombach et al. 2022, section 3.1 and App. G. Everything here computes in float32 or better, also under autocast.
"""

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

LOG_VARIANCE_RANGE = (-30.0, 20.0)
_DISTANCES_AT_ONCE = 1 << 22  # 16 MiB of float32: a bound on the memory of a codebook search, whatever the input


@dataclass(frozen=True)
class Encoding:
    """The encoder's output."""

    z: Tensor
    """(B, C, h, w), the decoder's input; KL: a sample or the mean; VQ: the code, with straight-through gradients."""
    regulariser: Tensor
    """Scalar; KL: nats summed over C, h, w, averaged over B; VQ: codebook and commitment term, means over all."""
    moments: Tensor
    """Stored in latent caches; KL: (B, 2C, h, w) mean, clamped log variance; VQ: (B, C, h, w) before quantisation."""
    indices: Tensor | None
    """(B, h, w) long, the codes; None for KL."""


def widen(x: Tensor) -> Tensor:
    """float32 for half-precision input; float32 and float64 pass."""
    return x.float() if x.element_size() < 4 else x


# ---- Gaussian posterior


def gaussian_moments(parameters: Tensor) -> Tensor:
    """Encoder output (B, 2C, h, w) -> mean and log variance in one tensor, the log variance clamped to [-30, 20]."""
    mean, log_variance = widen(parameters).chunk(2, dim=1)
    return torch.cat([mean, log_variance.clamp(*LOG_VARIANCE_RANGE)], dim=1)


def gaussian_sample(moments: Tensor, noise: Tensor | None) -> Tensor:
    """mean + std · noise, (B, C, h, w), from moments (B, 2C, h, w); the mean where noise is None."""
    mean, log_variance = moments.chunk(2, dim=1)
    if noise is None:
        return mean
    return mean + torch.exp(0.5 * log_variance) * noise.to(mean)


def gaussian_kl(moments: Tensor) -> Tensor:
    """KL(N(mean, var) ‖ N(0, 1)) in nats, summed over C, h, w: (B,), from moments (B, 2C, h, w)."""
    mean, log_variance = widen(moments).chunk(2, dim=1)
    return 0.5 * (mean.square() + log_variance.exp() - 1.0 - log_variance).sum(dim=(1, 2, 3))


def bits_per_dimension(moments: Tensor) -> Tensor:
    """The posterior's KL in bits per latent number, mean over the batch: a scalar; near 0: no information."""
    _, C2, h, w = moments.shape
    return gaussian_kl(moments).mean() / (C2 // 2 * h * w * math.log(2))


# ---- codebook


class VectorQuantizer(nn.Module):
    """Replaces each latent vector by its nearest code (van den Oord et al. 2017; Esser et al. 2021).

    Args:
        codes: entries of the codebook.
        channels: size of an entry.
        beta: weight of one of the two loss terms, see legacy.
        legacy: True: ‖sg(e) − z‖² + beta ‖e − sg(z)‖², as the published models were trained; False: the paper's form
            with beta on the commitment, ‖e − sg(z)‖² + beta ‖sg(e) − z‖².
        normalise: project latents and codes to the unit sphere (Yu et al. 2022), so that the search is by cosine.
    """

    def __init__(
        self, codes: int, channels: int, beta: float = 0.25, legacy: bool = True, normalise: bool = False
    ) -> None:
        super().__init__()
        self.embedding = nn.Embedding(codes, channels)
        nn.init.uniform_(self.embedding.weight, -1.0 / codes, 1.0 / codes)
        self.beta = beta
        self.legacy = legacy
        self.normalise = normalise

    def codebook(self) -> Tensor:
        """The codes as they are compared and decoded, (K, C)."""
        weight = widen(self.embedding.weight)
        return F.normalize(weight, dim=1) if self.normalise else weight

    def prepare(self, h: Tensor) -> Tensor:
        """The latent as it is compared and cached, (B, C, h, w)."""
        h = widen(h)
        return F.normalize(h, dim=1) if self.normalise else h

    def search(self, z: Tensor, sliced: bool = True) -> Tensor:
        """The index of the nearest code at each position: (B, C, h, w) -> (B, h, w) long.

        sliced: in slices, so that memory is bounded; False for a traced graph, which would fix their number.
        """
        B, C, H, W = z.shape
        points = self.prepare(z.detach()).permute(0, 2, 3, 1).reshape(-1, C)
        codebook = self.codebook().detach()
        found = nearest_codes(points, codebook) if sliced else _nearest(points, codebook, _half_norm(codebook))
        return found.reshape(B, H, W)

    def embed(self, indices: Tensor) -> Tensor:
        """Codes by index: (B, h, w) long -> (B, C, h, w)."""
        return F.embedding(indices, self.codebook()).permute(0, 3, 1, 2)

    def quantise(self, z: Tensor) -> Tensor:
        """The nearest codes, (B, C, h, w); the gradient of z passes straight through and the codebook gets none."""
        z = self.prepare(z)
        return z + (self.embed(self.search(z)) - z).detach()

    def forward(self, h: Tensor) -> Encoding:
        """Latent (B, C, h, w) -> codes, loss, the latent before quantisation, indices."""
        z = self.prepare(h)
        indices = self.search(z)
        e = self.embed(indices)
        commitment = (e.detach() - z).square().mean()
        codebook = (e - z.detach()).square().mean()
        loss = commitment + self.beta * codebook if self.legacy else codebook + self.beta * commitment
        return Encoding(z=z + (e - z).detach(), regulariser=loss, moments=z, indices=indices)


def codebook_digest(quantize: VectorQuantizer) -> str:
    """32 hex digits that identify the codes: together with the latents they determine the indices."""
    codes = quantize.codebook().detach().cpu().contiguous()
    return hashlib.sha256(codes.view(torch.uint8).numpy().tobytes()).hexdigest()[:32]


def nearest_codes(points: Tensor, codebook: Tensor) -> Tensor:
    """For points (N, C) the index of the nearest row of the codebook (K, C), by squared distance: (N,) long.

    The points are processed in slices, so that the distances never need more than a fixed amount of memory.
    """
    points, codebook = widen(points), widen(codebook)
    rows = max(1, _DISTANCES_AT_ONCE // codebook.shape[0])
    with torch.autocast(points.device.type, enabled=False):
        half_norm = _half_norm(codebook)
        indices = [_nearest(part, codebook, half_norm) for part in points.split(rows)]
    return torch.cat(indices)


def _half_norm(codebook: Tensor) -> Tensor:
    return 0.5 * codebook.square().sum(dim=1)


def _nearest(points: Tensor, codebook: Tensor, half_norm: Tensor) -> Tensor:
    # argmin |z − e|² = argmin |e|²/2 − z·e: |z|² is the same for every code.
    return torch.addmm(half_norm, points, codebook.t(), alpha=-1.0).argmin(dim=1)


@dataclass(frozen=True)
class CodebookUsage:
    """Statistics of how a codebook is used."""

    used: float
    """Share of codes that occurred, in (0, 1]."""
    perplexity: float
    """exp of the entropy of the code frequencies: the number of equally used codes with the same entropy."""


def code_counts(indices: Tensor, codes: int) -> Tensor:
    """How often each code occurs among indices of any shape: (codes,) long. Counts of several batches add."""
    return torch.bincount(indices.reshape(-1), minlength=codes)


def codebook_usage(counts: Tensor) -> CodebookUsage:
    """Summary of the counts (codes,); raises ValueError if nothing was counted."""
    total = counts.sum()
    if total == 0:
        raise ValueError("codebook_usage: no code was counted; call code_counts on at least one batch first")
    p = counts.double() / total
    entropy = -(p * p.clamp_min(1e-300).log()).sum()
    return CodebookUsage(used=(counts > 0).double().mean().item(), perplexity=entropy.exp().item())


def revive_dead_codes(
    codebook: Tensor, counts: Tensor, latents: Tensor, generator: torch.Generator, at_most: float = 0.0
) -> tuple[Tensor, Tensor]:
    """Moves rarely used codes onto random latents (random restart; Dhariwal et al. 2020).

    Args:
        codebook: (K, C).
        counts: (K,) uses of each code since the last revival.
        latents: (N, C) or (B, C, h, w), recent latents before quantisation.
        generator: chooses the latents.
        at_most: codes counted no more often than this are dead.

    Returns:
        The new codebook (K, C), detached, and which rows were revived (K,) bool. The caller must reset the optimiser's
        moments of those rows.
    """
    points = as_points(latents).to(codebook)
    dead = (counts <= at_most).to(codebook.device)
    n = int(dead.sum())
    renewed = codebook.detach().clone()
    if n > 0:
        renewed[dead] = points[_choose(points.shape[0], n, generator).to(points.device)]
    return renewed, dead


def kmeans(latents: Tensor, codes: int, generator: torch.Generator, iterations: int = 10) -> Tensor:
    """Codes (codes, C) at the cluster means of latents, (N, C) or (B, C, h, w): Lloyd's algorithm.

    It starts from random latents; an empty cluster moves to a random one.
    """
    points = as_points(latents)
    centres = points[_choose(points.shape[0], codes, generator).to(points.device)].clone()
    for _ in range(iterations):
        nearest = nearest_codes(points, centres)
        counts = code_counts(nearest, codes)
        sums = torch.zeros_like(centres).index_add_(0, nearest, points)
        centres = sums / counts.clamp_min(1).to(sums)[:, None]
        centres, _ = revive_dead_codes(centres, counts, points, generator)
    return centres


def as_points(latents: Tensor) -> Tensor:
    """(B, C, h, w) -> (B·h·w, C), detached; (N, C) passes."""
    latents = widen(latents.detach())
    return latents.permute(0, 2, 3, 1).reshape(-1, latents.shape[1]) if latents.dim() == 4 else latents


def _choose(population: int, n: int, generator: torch.Generator) -> Tensor:
    """n indices below population, different ones as long as there are enough."""
    rounds: Sequence[Tensor] = [torch.randperm(population, generator=generator) for _ in range(-(-n // population))]
    return torch.cat(list(rounds))[:n]
