"""The spine: condition -> denoise function -> sampler -> unscale -> decode. Knows no files and no user interface."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from sfumato.autoencoder.model import Autoencoder
from sfumato.autoencoder.scaling import Scaling
from sfumato.conditioning.condition import Condition, stack
from sfumato.diffusion.prediction import PredictionKind, to_x0
from sfumato.diffusion.process import network_time
from sfumato.diffusion.schedule import Schedule
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
) -> Tensor:
    """Model latents (B, C, h, w) from noise; `shape` is (C, h, w), B the number of the noise's generators."""
    x = noise((noise.samples, *shape))
    return walk(sampler, schedule, denoise, x, grid, noise, callback)


@torch.no_grad()
def decode(autoencoder: Autoencoder, scaling: Scaling, latent: Tensor, batch: int = 16) -> Tensor:
    """Model latents (B, C, h, w) -> images (B, 3, H, W), `batch` at a time; in float32 again where not finite."""
    images = []
    for part in latent.split(batch):
        raw = scaling.to_raw(part)
        image = autoencoder.decode(raw)
        if not bool(torch.isfinite(image).all()):
            with torch.autocast(part.device.type, enabled=False):
                image = autoencoder.decode(raw.float())
        images.append(image.float())
    return torch.cat(images)


@torch.no_grad()
def reconstruct(autoencoder: Autoencoder, image: Tensor, batch: int = 16) -> Tensor:
    """Images (B, 3, H, W) through the first stage and back, by the posterior's mean."""
    return torch.cat(
        [autoencoder.decode(autoencoder.encode(part).z, quantize=False).float() for part in image.split(batch)]
    )
