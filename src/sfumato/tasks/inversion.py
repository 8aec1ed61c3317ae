"""DDIM inversion: from an image to the noise that generates it."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from sfumato.model import LatentDiffusion
from sfumato.pipeline import pipeline
from sfumato.pipeline.latents import check_finite
from sfumato.pipeline.parts import second_stage
from sfumato.pipeline.plan import plan, warn_of
from sfumato.pipeline.request import SampleRequest
from sfumato.sampling.grids import GridConfig
from sfumato.sampling.inversion import invert

INVERSION_GRID = GridConfig(kind="trailing", end="first-index")
"""From t = 1 down to index 0, where an image still contains noise."""


@dataclass(frozen=True)
class Inversion:
    """The result of an inversion: noise (N, C, h, w), the images sampled from it, and the autoencoder's
    reconstructions.

    The difference between `resampled` and `reconstructed` (both (N, 3, H, W)) is the error of the inversion; that
    between `reconstructed` and the images is the autoencoder's error.
    """

    noise: Tensor
    resampled: Tensor
    reconstructed: Tensor


@torch.no_grad()
def find_noise(
    model: LatentDiffusion,
    images: Tensor,
    text: str | Sequence[str] | None = None,
    label: Sequence[int | str] | int | str | None = None,
    steps: int = 50,
    refinements: int = 1,
    batch: int = 16,
    progress: Callable[[int, int], None] | None = None,
) -> Inversion:
    """The noise from which DDIM, without guidance, samples these images (N, 3, H, W) in [-1, 1] again.

    Sample it with another prompt, or with guidance, by `model.sample(..., noise=noise, sampler="ddim", steps=steps,
    grid=INVERSION_GRID)`. Costs steps · (1 + refinements) network calls, and `steps` more to sample again.

    Args:
        text, label: the conditions of the images, one each or one for all, as the model is conditioned.
        refinements: fixed-point iterations of each step; 0 is plain DDIM inversion.
        progress: called with (done, total) images.

    Raises:
        UserError: for arguments that do not fit the model.
    """
    n = len(images)
    request = SampleRequest(
        prompt=text,
        label=label,
        count=n,
        steps=steps,
        sampler="ddim",
        grid=INVERSION_GRID,
        guidance=1.0,
        size=(images.shape[-2], images.shape[-1]),
        batch=batch,
    )
    planned = plan(model, request)
    warn_of(planned.notes)
    noises, latents = [], []
    for first in range(0, n, batch):
        rows = slice(first, min(first + batch, n))
        latent = model.encode(images[rows])
        condition = pipeline.conditions_of(model, request, planned, rows).condition
        denoise = pipeline.network_of(model).denoise(condition)
        noise = invert(denoise, second_stage(model).schedule, latent, planned.times, refinements)
        noises.append(check_finite(noise, "denoiser", "noise"))
        latents.append(latent)
        if progress is not None:
            progress(rows.stop, n)
    inverted = torch.cat(noises)
    resampled = pipeline.sample(model, replace(request, noise=inverted)).images
    return Inversion(inverted, resampled, model.decode(torch.cat(latents)))
