"""The spine: condition -> denoise function -> sampler -> unscale -> decode. Knows no files and no user interface."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from sfumato.autoencoder.model import Autoencoder
from sfumato.autoencoder.scaling import Scaling
from sfumato.conditioning.condition import Condition, stack
from sfumato.diffusion.prediction import PredictionKind, to_x0
from sfumato.diffusion.process import network_time
from sfumato.diffusion.schedule import Schedule
from sfumato.engine import tiles
from sfumato.rng import SampleNoise
from sfumato.sampling import guidance as guiding
from sfumato.sampling.loop import Step
from sfumato.sampling.loop import sample as walk
from sfumato.sampling.sampler import Denoise, Sampler


@dataclass(frozen=True)
class Guidance:
    """Classifier-free guidance: `scale` 1 is off; it acts at times inside `interval` (both within [0, 1])."""

    scale: float = 1.0
    interval: tuple[float, float] = (0.0, 1.0)


def denoise_function(
    denoiser: nn.Module, schedule: Schedule, prediction: PredictionKind, condition: Condition
) -> Denoise:
    """(x_t (B, C, h, w), t) -> expected clean x0 (B, C, h, w), from a network that predicts `prediction`."""

    def denoise(x_t: Tensor, t: Tensor) -> Tensor:
        alpha, sigma = schedule(t)
        timestep = network_time(t, schedule.steps).float().to(x_t.device).expand(x_t.shape[0])
        predicted = denoiser(x_t, timestep, condition).to(x_t.dtype)
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
    if guidance.scale == 1 or null is None:
        return plain
    doubled = denoise_function(denoiser, schedule, prediction, stack([null, condition]))

    def both(x_t: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        without, given = doubled(torch.cat([x_t, x_t]), t).chunk(2)
        return given, without

    return guiding.classifier_free(plain, both, guidance.scale, guidance.interval)


@torch.no_grad()
def generate_latents(
    denoise: Denoise,
    schedule: Schedule,
    sampler: Sampler,
    grid: Tensor,
    shape: tuple[int, int, int],
    noise: SampleNoise,
    callback: Callable[[Step], None] | None = None,
) -> Tensor:
    """Model latents (B, C, h, w) from noise; `shape` is (C, h, w), B the number of the noise's generators."""
    x = noise((noise.samples, *shape))
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
def reconstruct(autoencoder: Autoencoder, image: Tensor, batch: int = 16, memory: int = tiles.DEFAULT_MEMORY) -> Tensor:
    """Images (B, 3, H, W) through the first stage and back, by the posterior's mean; `memory` as for `decode`."""
    made = []
    for part in image.split(batch):
        latent = autoencoder.latent_from_moments(tiles.encode(autoencoder, part, memory))
        made.append(tiles.decode(autoencoder, latent, memory).float())
    return torch.cat(made)
