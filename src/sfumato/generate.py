"""The spine: condition -> denoise function -> sampler -> unscale -> decode. Knows no files and no user interface."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sfumato.autoencoder.model import Autoencoder
from sfumato.autoencoder.scaling import Scaling
from sfumato.autoencoder.tiny import TinyDecoder
from sfumato.conditioning.condition import Condition, stack
from sfumato.diffusion.prediction import PredictionKind, to_x0
from sfumato.diffusion.process import told_time
from sfumato.diffusion.schedule import Schedule
from sfumato.engine import tiles
from sfumato.rng import SampleNoise
from sfumato.sampling import guidance as guiding
from sfumato.sampling.loop import Step
from sfumato.sampling.loop import sample as walk
from sfumato.sampling.sampler import Denoise, Sampler


@dataclass(frozen=True)
class Projection:
    """Adaptive projected guidance (Sadat et al. 2025): see `sfumato.sampling.guidance.Projected`."""

    parallel: float = 0.0
    """The weight of the part along the conditional latent (the paper's eta)."""
    limit: float = math.inf
    """The longest guiding difference, as a norm over a sample's latent (the paper's r)."""
    momentum: float = 0.0
    """The weight of the steps before (the paper's beta, about -0.5)."""


@dataclass(frozen=True)
class Guidance:
    """Classifier-free guidance: `scale` 1 is off; it acts at times inside `interval` (both within [0, 1]).

    scale: one number, or one per sample (B,). rescale: how far the spread that guidance inflates is brought back, 0 to
    1 (Lin et al. 2024). projection: adaptive projected guidance.
    """

    scale: float | Tensor = 1.0
    interval: tuple[float, float] = (0.0, 1.0)
    rescale: float = 0.0
    projection: Projection | None = None

    def combine(self) -> guiding.Combine:
        """How the two halves become one; for one run, as a momentum remembers."""
        inner: guiding.Combine = guiding.linear
        if self.projection is not None:
            weight = self.projection.momentum
            momentum = guiding.Momentum(weight) if weight else None
            inner = guiding.Projected(self.projection.parallel, self.projection.limit, momentum)
        return guiding.Rescaled(self.rescale, inner) if self.rescale else inner


ImageLoss = Callable[[Tensor], Tensor]
"""Images (B, 3, H, W), about [-1, 1] -> how far each is from what is wished for (B,), at least 0; differentiable."""


@dataclass(frozen=True)
class Steering:
    """Image guidance (the paper's appendix C): pictures are led down a loss of the decoded image, at a scale."""

    loss: ImageLoss
    scale: float = 1.0


def denoise_function(
    denoiser: nn.Module, schedule: Schedule, prediction: PredictionKind, condition: Condition
) -> Denoise:
    """(x_t (B, C, h, w), t) -> expected clean x0 (B, C, h, w), from a network that predicts `prediction`."""

    def denoise(x_t: Tensor, t: Tensor) -> Tensor:
        alpha, sigma = schedule(t)
        predicted = denoiser(x_t, told_time(t, schedule.steps, x_t), condition).to(x_t.dtype)
        return to_x0(prediction, predicted, x_t, alpha, sigma)

    return denoise


def guided(
    denoiser: nn.Module,
    schedule: Schedule,
    prediction: PredictionKind,
    condition: Condition,
    null: Condition | None,
    guidance: Guidance,
) -> Denoise:
    """The denoise function with guidance; the two halves run as one doubled batch, unconditional first."""
    plain = denoise_function(denoiser, schedule, prediction, condition)
    if null is None or bool((torch.as_tensor(guidance.scale) == 1).all()):
        return plain
    doubled = denoise_function(denoiser, schedule, prediction, stack([null, condition]))

    def both(x_t: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        without, given = doubled(torch.cat([x_t, x_t]), t).chunk(2)
        return given, without

    return guiding.classifier_free(plain, both, guidance.scale, guidance.interval, guidance.combine())


def steered(denoise: Denoise, autoencoder: Autoencoder, scaling: Scaling, steering: Steering) -> Denoise:
    """The denoise function led by a loss of the decoded picture; its calls also cost a backward pass of both networks.

    The networks must let gradients through: those that `engine.for_inference` has packed do not.
    """

    def loss(x0: Tensor) -> Tensor:
        return steering.loss(autoencoder.decode(scaling.to_raw(x0)).float())

    return guiding.steered(denoise, loss, steering.scale)


def guided_by_parts(
    denoiser: nn.Module,
    schedule: Schedule,
    prediction: PredictionKind,
    conditions: Sequence[Condition],
    scales: Sequence[float],
    interval: tuple[float, float] = (0.0, 1.0),
) -> Denoise:
    """The denoise function with a guidance scale for each part of a composite conditioner, all in one larger batch.

    conditions: K + 1, as `Composite.one_by_one` gives them for the K parts that `scales` are for.
    """
    plain = denoise_function(denoiser, schedule, prediction, conditions[-1])
    together = denoise_function(denoiser, schedule, prediction, stack(conditions))

    def all_of(x_t: Tensor, t: Tensor) -> Sequence[Tensor]:
        return together(torch.cat([x_t] * len(conditions)), t).chunk(len(conditions))

    return guiding.by_parts(plain, all_of, scales, interval)


@torch.no_grad()
def generate_latents(
    denoise: Denoise,
    schedule: Schedule,
    sampler: Sampler,
    grid: Tensor,
    shape: tuple[int, int, int],
    noise: SampleNoise,
    callback: Callable[[Step], None] | None = None,
    start: Tensor | None = None,
) -> Tensor:
    """Model latents (B, C, h, w) from noise; `shape` is (C, h, w), B the number of the noise's generators.

    start: what stands at grid[0] instead of noise, (B, C, h, w); later draws are the same as without it.
    """
    x = noise((noise.samples, *shape))
    if start is not None:
        x = start.to(x)
    return walk(sampler, schedule, denoise, x, grid, noise, callback)


@torch.no_grad()
def decode(
    autoencoder: Autoencoder,
    scaling: Scaling,
    latent: Tensor,
    batch: int = 16,
    memory: int = tiles.DEFAULT_MEMORY,
) -> Tensor:
    """Model latents (B, C, h, w) -> images (B, 3, H, W), `batch` at a time; in float32 again where not finite.

    memory: bytes of feature maps; where a batch would take more, fewer at a time, and large pictures in bands.
    """
    images = []
    for part in latent.split(batch):
        raw = scaling.to_raw(part)
        image = tiles.decode(autoencoder, raw, memory)
        if not bool(torch.isfinite(image).all()):
            with torch.autocast(part.device.type, enabled=False):
                image = tiles.decode(autoencoder, raw.float(), memory)
        images.append(image.float())
    return torch.cat(images)


@torch.no_grad()
def preview(
    tiny: TinyDecoder, scaling: Scaling, latent: Tensor, batch: int = 16, memory: int = tiles.DEFAULT_MEMORY
) -> Tensor:
    """As `decode`, by a tiny decoder; as few at a time as `memory` asks for, a large picture as a whole."""
    at_once = max(1, min(batch, memory // tiny.config.bytes_needed((latent.shape[2], latent.shape[3]))))
    return torch.cat([tiny(scaling.to_raw(part)).float() for part in latent.split(at_once)])


@torch.no_grad()
def reconstruct(autoencoder: Autoencoder, image: Tensor, batch: int = 16, memory: int = tiles.DEFAULT_MEMORY) -> Tensor:
    """Images (B, 3, H, W) through the first stage and back, by the posterior's mean; `memory` as for `decode`."""
    made = []
    for part in image.split(batch):
        latent = autoencoder.latent_from_moments(tiles.encode(autoencoder, part, memory))
        made.append(tiles.decode(autoencoder, latent, memory).float())
    return torch.cat(made)


@torch.no_grad()
def encode_raw(autoencoder: Autoencoder, image: Tensor, memory: int = tiles.DEFAULT_MEMORY) -> Tensor:
    """Images (B, 3, H, W) in [-1, 1] -> raw latents (B, C, h, w): the posterior's mean, VQ before quantisation."""
    return autoencoder.latent_from_moments(tiles.encode(autoencoder, image, memory)).float()


@torch.no_grad()
def encode(
    autoencoder: Autoencoder, scaling: Scaling, image: Tensor, batch: int = 16, memory: int = tiles.DEFAULT_MEMORY
) -> Tensor:
    """Images (B, 3, H, W) in [-1, 1] -> model latents (B, C, h, w); `memory` as for `decode`."""
    return torch.cat([scaling.to_model(encode_raw(autoencoder, part, memory)) for part in image.split(batch)])


def latent_keep(keep: Tensor, factor: int) -> Tensor:
    """A mask of pixels (B, 1, H, W), 1 = keep, 0 = generate -> of latent positions (B, 1, h, w).

    A position is kept only where all its pixels are; values between, of soft masks, take the least.
    """
    return -F.max_pool2d(-keep.float(), factor)
