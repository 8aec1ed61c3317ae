"""One picture of a canvas of any size: conditions, windows, sampler, decoder. What every task ends in."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from sfumato import generate
from sfumato.diffusion.process import add_noise
from sfumato.drawing import chosen
from sfumato.errors import UserError
from sfumato.generate import Guidance
from sfumato.model import LatentDiffusion
from sfumato.rng import SampleNoise
from sfumato.sampling.grids import build_grid, tail
from sfumato.sampling.inpainting import KnownRegion, with_jumps
from sfumato.sampling.loop import sample as walk
from sfumato.sampling.sampler import Denoise
from sfumato.sampling.table import build_sampler, check_start
from sfumato.sampling.windows import Window
from sfumato.tasks.part_guidance import check_parts
from sfumato.tasks.settings import Settings
from sfumato.tasks.steering import Steering, Words, second_stage, steer


@dataclass(frozen=True)
class Start:
    """A clean latent (1, C, h, w) to begin from, noised (SDEdit, Meng et al. 2022), by a strength in (0, 1]."""

    latent: Tensor
    strength: float


@dataclass(frozen=True)
class Kept:
    """A clean latent (1, C, h, w) that stays where `keep` (1, 1, h, w) is 1.

    jumps: (length, repeats) of RePaint's resampling; None: none.
    """

    latent: Tensor
    keep: Tensor
    jumps: tuple[int, int] | None = None


def grain(model: LatentDiffusion) -> int:
    """What the sides of a canvas are multiples of: both networks' downsampling factors together."""
    return model.autoencoder.factor * second_stage(model).config.denoiser.factor


def encode(model: LatentDiffusion, image: Tensor, memory: int) -> Tensor:
    """Image (1, 3, H, W) in [-1, 1] -> raw latent (1, C, h, w): the posterior's mean, VQ before quantisation."""
    return generate.encode_raw(model.autoencoder, image.to(model.device), memory)


@torch.no_grad()
def draw(
    model: LatentDiffusion,
    size: tuple[int, int],
    fields: Mapping[str, Any],
    words: Words,
    settings: Settings,
    index: int = 0,
    start: Start | None = None,
    kept: Kept | None = None,
) -> Tensor:
    """The picture number `index` of a task: (3, H, W) in about [-1, 1], of seed settings.seed + index.

    Args:
        model: the model.
        size: (H, W), multiples of `grain`.
        fields: conditions of the whole canvas, as the model's conditioners read them.
        words: prompt, label, negative prompt.
        settings: how to sample.
        index: which picture.
        start: a picture to begin from, None: noise.
        kept: what is not to change, None: nothing.

    Raises:
        UserError: for options or conditions that do not fit this model.
    """
    second = second_stage(model)
    shape = model.latent_shape_of(size)
    steering, steers = steer(model, fields, words, shape[1:])
    scale, denoise_of = _guided(model, steering, steers, words, settings)
    denoise = model.over_windows(denoise_of, shape[1:], settings.window, settings.overlap)
    choice = chosen(second, settings.sampler, settings.grid, settings.steps, scale)
    times = build_grid(choice.grid, second.schedule, settings.steps)
    check_start(choice.sampler.kind, second.config.prediction, second.schedule, times)
    noise = SampleNoise([settings.seed + index], device=model.device)
    x = noise((1, *shape))
    if start is not None:
        times = tail(times, start.strength)
        if start.strength < 1:
            x = add_noise(second.schedule, start.latent.to(x), x, times[0])
    sampler = build_sampler(choice.sampler)
    if kept is not None:
        sampler = KnownRegion(sampler, kept.latent, kept.keep, ends_clean=True)
        times = times if kept.jumps is None else with_jumps(times, *kept.jumps)
    x = walk(sampler, second.schedule, denoise, x, times, noise, settings.callback)
    return generate.decode(model.autoencoder, model.scaling, x, memory=settings.memory)[0]


def _guided(
    model: LatentDiffusion, steering: Steering, steers: bool, words: Words, settings: Settings
) -> tuple[float, Callable[[Window], Denoise]]:
    """The largest guidance scale, and the guided denoise function of a window."""
    second, asked = second_stage(model), settings.guidance
    network = (second.denoiser, second.schedule, second.config.prediction)
    if isinstance(asked, Mapping):
        check_parts(model, asked, words)
        if not steers:
            raise UserError("guidance for parts needs something that steers: give a prompt or a label")
        scales = dict(asked)

        def by_parts(window: Window) -> Denoise:
            conditions = steering.one_by_one(window, list(scales))
            return generate.guided_by_parts(*network, conditions, list(scales.values()), settings.interval)

        return max(scales.values()), by_parts
    guidance = Guidance(scale := model.guidance_scale(asked, steers), settings.interval)
    return scale, lambda window: generate.guided(*network, *steering(window), guidance)


def check_settings(settings: Settings) -> None:
    """Raises UserError for a number of pictures below 1."""
    if settings.n < 1:
        raise UserError(f"n is {settings.n}: give at least 1")


def check_picture(model: LatentDiffusion, height: int, width: int, what: str = "the picture") -> None:
    """Raises UserError for a picture smaller than one cell of the latent."""
    f = model.autoencoder.factor
    if height < f or width < f:
        raise UserError(
            f"{what} is {height}x{width} (height x width), smaller than one latent cell of {f}x{f} pixels: "
            "give a larger one"
        )
