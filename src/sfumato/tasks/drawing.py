"""Pictures on canvases of any size: conditions, windows, sampler, decoder. What every task ends in."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor

from sfumato import generate
from sfumato.conditioning.condition import Condition, stack
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

T = TypeVar("T")


@dataclass(frozen=True)
class Start:
    """A clean latent (1, C, h, w) to begin from, noised (SDEdit, Meng et al. 2022), by a strength in [0, 1]."""

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


@dataclass(frozen=True)
class Order(Generic[T]):
    """What a task asks of the model for one given picture, map or layout.

    Attributes:
        size: (H, W) of the canvas, multiples of `grain`.
        fields: conditions of the whole canvas, as the model's conditioners read them, each of a batch of one.
        words: prompt, label, negative prompt.
        finish: what the drawn canvas (3, H, W), on the CPU in about [-1, 1], becomes.
        start: a picture to begin from, None: noise.
        kept: what is not to change, None: nothing.
    """

    size: tuple[int, int]
    fields: Mapping[str, Any]
    words: Words
    finish: Callable[[Tensor], T]
    start: Start | None = None
    kept: Kept | None = None

    @property
    def walk(self) -> tuple[Any, ...]:
        """Orders that agree in this go the same way: they can be drawn together."""
        return (
            self.size,
            None if self.start is None else self.start.strength,
            self.kept is not None,
            None if self.kept is None else self.kept.jumps,
        )


def grain(model: LatentDiffusion) -> int:
    """What the sides of a canvas are multiples of: both networks' downsampling factors together."""
    return model.autoencoder.factor * second_stage(model).config.denoiser.factor


def encode(model: LatentDiffusion, image: Tensor, memory: int) -> Tensor:
    """Image (1, 3, H, W) in [-1, 1] -> raw latent (1, C, h, w): the posterior's mean, VQ before quantisation."""
    return generate.encode_raw(model.autoencoder, image.to(model.device), memory)


def draw_all(model: LatentDiffusion, orders: Sequence[Order[T]], settings: Settings) -> list[T]:
    """settings.n results of every order, those of an order one after the other.

    The k-th result has the seed settings.seed + k, whatever settings.batch is. Errors as `draw`.
    """
    wanted = [order for order in orders for _ in range(settings.n)]
    made: list[T] = []
    while len(made) < len(wanted):
        first = len(made)
        together = 1
        while (
            together < settings.batch
            and first + together < len(wanted)
            and wanted[first + together].walk == wanted[first].walk
        ):
            together += 1
        part = wanted[first : first + together]
        drawn = draw(model, part, settings, range(settings.seed + first, settings.seed + first + together)).cpu()
        made += [order.finish(canvas) for order, canvas in zip(part, drawn, strict=True)]
    return made


@torch.no_grad()
def draw(model: LatentDiffusion, orders: Sequence[Order[Any]], settings: Settings, seeds: Sequence[int]) -> Tensor:
    """The canvases of orders that go the same way, each with its seed: (B, 3, H, W) in about [-1, 1].

    Raises UserError for options or conditions that do not fit this model.
    """
    second, lead = second_stage(model), orders[0]
    shape = model.latent_shape_of(lead.size)
    steered = [steer(model, order.fields, order.words, shape[1:]) for order in orders]
    scale, denoise_of = _guided(model, [s for s, _ in steered], any(s for _, s in steered), orders, settings)
    denoise = model.over_windows(denoise_of, shape[1:], settings.window, settings.overlap)
    choice = chosen(second, settings.sampler, settings.grid, settings.steps, scale)
    times = build_grid(choice.grid, second.schedule, settings.steps)
    check_start(choice.sampler.kind, second.config.prediction, second.schedule, times)
    noise = SampleNoise(list(seeds), device=model.device)
    x = noise((len(orders), *shape))
    starts = [order.start for order in orders if order.start is not None]
    if starts:
        latent = torch.cat([start.latent for start in starts])
        if starts[0].strength == 0:
            return generate.decode(model.autoencoder, model.scaling, latent, memory=settings.memory)
        times = tail(times, starts[0].strength)
        if starts[0].strength < 1:
            x = add_noise(second.schedule, latent.to(x), x, times[0])
    sampler = build_sampler(choice.sampler)
    kept = [order.kept for order in orders if order.kept is not None]
    if kept:
        known, keep = torch.cat([k.latent for k in kept]), torch.cat([k.keep for k in kept])
        sampler = KnownRegion(sampler, known, keep, ends_clean=True)
        times = times if kept[0].jumps is None else with_jumps(times, *kept[0].jumps)
    x = walk(sampler, second.schedule, denoise, x, times, noise, settings.callback)
    return generate.decode(model.autoencoder, model.scaling, x, memory=settings.memory)


def _guided(
    model: LatentDiffusion,
    steerings: Sequence[Steering],
    steers: bool,
    orders: Sequence[Order[Any]],
    settings: Settings,
) -> tuple[float, Callable[[Window], Denoise]]:
    """The largest guidance scale, and the guided denoise function of a window."""
    second, asked = second_stage(model), settings.guidance
    network = (second.denoiser, second.schedule, second.config.prediction)
    if isinstance(asked, Mapping):
        for order in orders:
            check_parts(model, asked, order.words)
        if not steers:
            raise UserError("guidance for parts needs something that steers: give a prompt or a label")
        scales = dict(asked)

        def by_parts(window: Window) -> Denoise:
            each = [steering.one_by_one(window, list(scales)) for steering in steerings]
            conditions = [stack(samples) for samples in zip(*each, strict=True)]
            return generate.guided_by_parts(*network, conditions, list(scales.values()), settings.interval)

        return max(scales.values()), by_parts
    guidance = Guidance(scale := model.guidance_scale(asked, steers), settings.interval)
    return scale, lambda window: generate.guided(*network, *_together(steerings, window), guidance)


def _together(steerings: Sequence[Steering], window: Window) -> tuple[Condition, Condition | None]:
    """The conditions of all samples in a window, and what guidance leads them away from."""
    pairs = [steering(window) for steering in steerings]
    nulls = [null for _, null in pairs if null is not None]
    return stack([condition for condition, _ in pairs]), stack(nulls) if nulls else None


def check_settings(settings: Settings) -> None:
    """Raises UserError for a number of pictures, or of those drawn at once, below 1."""
    for name, value in (("n", settings.n), ("batch", settings.batch)):
        if value < 1:
            raise UserError(f"{name} is {value}: give at least 1")


def check_picture(model: LatentDiffusion, height: int, width: int, what: str = "the picture") -> None:
    """Raises UserError for a picture smaller than one cell of the latent."""
    f = model.autoencoder.factor
    if height < f or width < f:
        raise UserError(
            f"{what} is {height}x{width} (height x width), smaller than one latent cell of {f}x{f} pixels: "
            "give a larger one"
        )
