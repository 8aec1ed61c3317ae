"""Ways through a model's noise: from picture to picture between seeds and prompts, and from a picture back to noise."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from sfumato.conditioning.condition import Condition, between
from sfumato.drawing import Drawing, denoiser_of, plan, second_stage
from sfumato.errors import UserError
from sfumato.model import LatentDiffusion
from sfumato.rng import SampleNoise
from sfumato.sampling.grids import GridConfig
from sfumato.sampling.inversion import invert, slerp

INVERSION_GRID = GridConfig(kind="trailing", end="first-index")
"""From t = 1 down to index 0, where noise can still be read off a picture."""


@dataclass(frozen=True)
class Stop:
    """A picture on the way: its seed, and its prompt or label where the model is steered by them."""

    seed: int
    text: str | None = None
    label: int | str | None = None


def interpolate(model: LatentDiffusion, stops: Sequence[Stop], frames: int, options: Drawing | None = None) -> Tensor:
    """Pictures (M, 3, H, W) on the way from stop to stop: `frames` a stretch, M = (stops - 1) · (frames - 1) + 1.

    Noise goes along the arc between two seeds (slerp), conditions along the straight line between two prompts; the
    frames at the stops are the pictures of those seeds and prompts. A stochastic sampler draws the first seed's fresh
    noise for all of them.

    Args:
        model: the model.
        stops: two at least, all with a text or none, and so for labels.
        frames: pictures of a stretch, both ends included, at least 2.
        options: how to draw; its text, label, seeds, start and condition are not looked at.

    Raises:
        UserError: for fewer stops or frames, and for what does not fit the model.
    """
    if len(stops) < 2 or frames < 2:
        raise UserError(f"{len(stops)} stops and {frames} frames: a way has two of each at least")
    options = options or Drawing()
    size = options.size or model.config.image_size
    shape = model.latent_shape_of(size)
    noises = [SampleNoise([stop.seed])((1, *shape)) for stop in stops]
    steered = any(stop.text is not None or stop.label is not None for stop in stops)
    conditions = [_condition(model, stop, size) for stop in stops]
    weights = [torch.linspace(0, 1, frames)[int(stretch > 0) :] for stretch in range(len(stops) - 1)]
    noise = [slerp(a.expand(len(w), -1, -1, -1), b, w) for a, b, w in zip(noises, noises[1:], weights, strict=False)]
    parts = [between(a, b, w) for a, b, w in zip(conditions, conditions[1:], weights, strict=False)]
    fields = {name: torch.cat([part.tensors()[name] for part in parts]) for name in conditions[0].tensors()}
    count = sum(len(w) for w in weights)
    return model.draw(
        replace(
            options,
            text=None,
            label=None,
            n=count,
            seeds=[stops[0].seed] * count,
            size=size,
            start=torch.cat(noise),
            condition=Condition(**fields) if steered else None,
        )
    )


@torch.no_grad()
def _condition(model: LatentDiffusion, stop: Stop, size: tuple[int, int]) -> Condition:
    text = None if stop.text is None else [stop.text]
    return model.condition(1, text, None if stop.label is None else [stop.label], size)[0]


@dataclass(frozen=True)
class Inversion:
    """What came of an inversion: noise (N, C, h, w), the pictures drawn from it, and those of the first stage alone.

    The difference between `redrawn` and `reconstructed` (both (N, 3, H, W)) is the error of the inversion; that between
    `reconstructed` and the pictures is the autoencoder's.
    """

    noise: Tensor
    redrawn: Tensor
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
    """The noise from which DDIM, without guidance, draws these images (N, 3, H, W) in [-1, 1] again.

    Redraw it with another prompt, or with guidance, by `model.sample(..., start=noise, sampler="ddim", steps=steps,
    grid=INVERSION_GRID)`. Costs steps · (1 + refinements) network calls, and `steps` more to draw again.

    Args:
        text, label: what the images show, one each or one for all, as the model is steered.
        refinements: fixed-point iterations of each step; 0 is plain DDIM inversion.
        progress: told (done, total) pictures.

    Raises:
        UserError: for what does not fit the model.
    """
    second = second_stage(model)
    n = len(images)
    options = Drawing(
        text=text,
        label=label,
        n=n,
        steps=steps,
        sampler="ddim",
        grid=INVERSION_GRID,
        guidance=1.0,
        size=(images.shape[-2], images.shape[-1]),
        batch=batch,
    )
    planned = plan(model, options)
    noises, latents = [], []
    for first in range(0, n, batch):
        rows = slice(first, min(first + batch, n))
        latent = model.encode(images[rows])
        words, classes = planned.texts and planned.texts[rows], planned.labels and planned.labels[rows]
        condition, _ = model.condition(len(latent), words, classes, planned.size)
        denoise = denoiser_of(model, condition)
        noises.append(invert(denoise, second.schedule, latent, planned.times, refinements))
        latents.append(latent)
        if progress is not None:
            progress(rows.stop, n)
    noise = torch.cat(noises)
    redrawn = model.draw(replace(options, start=noise))
    return Inversion(noise, redrawn, model.decode(torch.cat(latents)))
