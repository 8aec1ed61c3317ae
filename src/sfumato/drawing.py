"""What `LatentDiffusion.sample` does: options -> a checked plan -> batches of pictures.

Everything is checked in the plan, before any network is called.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, get_args

import torch
from torch import Tensor

from sfumato import generate
from sfumato.autoencoder.tiny import TinyDecoder
from sfumato.conditioning.condition import Condition, take
from sfumato.config import nearest
from sfumato.denoiser.unet import UNet
from sfumato.engine.packing import PackedConv2d, PackedLinear
from sfumato.engine.reuse import Reusing
from sfumato.engine.tiles import DEFAULT_MEMORY
from sfumato.errors import UserError
from sfumato.generate import Guidance, Projection, Steering
from sfumato.rng import SampleNoise
from sfumato.sampling.auto import Choice, choose
from sfumato.sampling.grids import GridConfig, build_grid
from sfumato.sampling.guidance import autoguidance, check_interval
from sfumato.sampling.inpainting import KnownRegion, with_jumps
from sfumato.sampling.loop import Step
from sfumato.sampling.sampler import Denoise, Sampler
from sfumato.sampling.table import SAMPLERS, SamplerConfig, build_sampler, check_start, default_grid
from sfumato.sampling.windows import OVERLAP

if TYPE_CHECKING:
    from sfumato.model import LatentDiffusion, SecondStage

AUTO = "auto"
DEFAULT_STEPS = 20
DecoderName = Literal["full", "tiny"]


@dataclass(frozen=True, kw_only=True, eq=False)
class Drawing:
    """The options of `LatentDiffusion.sample`: what to draw, by which way, and with what guidance.

    Where a value may be "one or one for each", a list has as many entries as there are pictures.
    """

    text: str | Sequence[str] | None = None
    """A prompt each, or one for all."""
    label: Sequence[int | str] | int | str | None = None
    """A class each (number or name), or one for all."""
    condition: Condition | None = None
    """A ready-made condition of all samples, instead of text and label."""
    n: int | None = None
    """How many, where it does not follow from text, label, seeds or known."""
    seed: int = 0
    seeds: Sequence[int] | None = None
    """One a sample; by default seed, seed + 1, ... A seed draws the same picture in any batch."""
    size: tuple[int, int] | None = None
    """(H, W), by default that of `known`, or the training size."""
    window: int | None = 0
    """The side in pixels of overlapping windows in which large pictures are denoised; 0: as a whole; None: of the
    training size where the picture has more than four times its area."""
    overlap: float = OVERLAP
    """Of neighbouring windows, as a share of their side."""
    batch: int = 16
    memory: int = DEFAULT_MEMORY
    """Bytes of feature maps while decoding; large pictures then go in bands, with the same numbers."""

    decoder: DecoderName = "full"
    """tiny: the small one for previews, which `sfumato distill-decoder` adds to a model."""

    steps: int = DEFAULT_STEPS
    sampler: str | SamplerConfig = AUTO
    """A name of `sfumato.sampling.table.SAMPLERS`, its configuration, or "auto"."""
    grid: GridConfig | None = None
    """How the steps are spaced; by default as suits the sampler."""

    guidance: float | Sequence[float] | None = None
    """The scale s of classifier-free guidance, one or one for each; 1 is off. By default 3 where the model was made for
    it and there is a text or a label; 1 with `autoguide`."""
    interval: tuple[float, float] = (0.0, 1.0)
    """The times in [0, 1] (1 is the noisiest) at which guidance acts."""
    rescale: float = 0.0
    """How far the spread that guidance inflates is brought back, 0 to 1 (Lin et al. 2024)."""
    projection: Projection | None = None
    """Adaptive projected guidance (Sadat et al. 2025)."""
    negative: str | Sequence[str] | None = None
    """A text to lead away from instead of from the unconditional case, one or one for each."""
    autoguide: "LatentDiffusion | None" = None
    """A weaker version of the model to lead away from (Karras et al. 2024): an earlier snapshot, a smaller network."""
    autoguide_scale: float = 2.0
    wrap: Callable[[Denoise], Denoise] | None = None
    """Turns the guided denoise function into the one that is sampled, as a classifier's `guide` does."""
    steer: Steering | None = None
    """A loss of the decoded picture to lead down (the paper's image guiding, appendix C)."""

    reuse: int = 1
    """Every so many network calls are whole; those between take the deep features of the last whole one, which is
    faster and an approximation (`sfumato.engine.reuse`). 1 is off."""

    known: Tensor | None = None
    """Pictures (1 or N, 3, H, W) in [-1, 1] whose kept pixels stay, as far as the autoencoder keeps them."""
    keep: Tensor | None = None
    """(1 or N, 1, H, W): 1 keeps a pixel of `known`, 0 generates it."""
    jumps: tuple[int, int] | None = None
    """RePaint's (length, repeats): every `length` steps go back up, so that each stretch is walked `repeats` times."""
    start: Tensor | None = None
    """Noise (N, C, h, w) to start from instead of the seeds': interpolated, or found by inversion."""
    callback: Callable[[Step], None] | None = None
    """Told of every step of every batch: times, latents and the expected clean latents."""


@dataclass(frozen=True)
class Plan:
    """Checked options: what is drawn, and by which sampler at which times.

    Attributes:
        count: how many.
        texts, labels, negatives, scales, seeds: one for each.
        size: (H, W); shape: (C, h, w).
        choice: sampler, grid and the reason of the choice, empty where the user chose.
        times: the falling times of the walk; with jumps they rise in between.
    """

    count: int
    texts: list[str] | None
    labels: list[int | str] | None
    negatives: list[str] | None
    scales: list[float]
    seeds: list[int]
    size: tuple[int, int]
    shape: tuple[int, int, int]
    choice: Choice
    times: Tensor

    @property
    def steps(self) -> int:
        """Steps of a batch."""
        return len(self.times) - 1


def plan(model: "LatentDiffusion", options: Drawing) -> Plan:
    """Checks the options against the model. Raises UserError for what does not fit."""
    second = second_stage(model)
    texts = [options.text] if isinstance(options.text, str) else options.text
    labels = [options.label] if isinstance(options.label, int | str) else options.label
    negatives = [options.negative] if isinstance(options.negative, str) else options.negative
    several = [texts, labels, options.seeds, options.known, options.start]
    if options.condition is not None:
        several += list(options.condition.tensors().values())
    count = options.n if options.n is not None else max([1, *(len(v) for v in several if v is not None)])
    if count < 1 or options.batch < 1:
        raise UserError(f"n is {count} and batch is {options.batch}: both must be at least 1")
    seeds = list(options.seeds) if options.seeds is not None else [options.seed + i for i in range(count)]
    if len(seeds) != count:
        raise UserError(f"{len(seeds)} seeds were given for {count} samples")
    size = _checked_size(model, options)
    check_interval(options.interval)
    if not 0 <= options.rescale <= 1:
        raise UserError(f"rescale is {options.rescale:g}: choose it between 0 (off) and 1")
    scales = _scales(model, options, count, any(v is not None for v in (texts, labels, negatives, options.condition)))
    _check_helpers(model, options)
    _check_decoder(model, options.decoder)
    choice = chosen(second, options.sampler, options.grid, options.steps, max(scales))
    times = build_grid(choice.grid, second.schedule, options.steps)
    check_start(choice.sampler.kind, second.config.prediction, second.schedule, times)
    if options.jumps is not None:
        if options.known is None:
            raise UserError("jumps go with known and keep: nothing is kept here")
        times = with_jumps(times, *options.jumps)
    shape = model.latent_shape_of(size)
    if options.start is not None and tuple(options.start.shape) != (count, *shape):
        raise UserError(f"start has the shape {tuple(options.start.shape)}, {count} samples need {(count, *shape)}")
    return Plan(
        count=count,
        texts=spread(texts, count, "text"),
        labels=spread(labels, count, "label"),
        negatives=spread(negatives, count, "negative"),
        scales=scales,
        seeds=seeds,
        size=size,
        shape=shape,
        choice=choice,
        times=times,
    )


def draw(model: "LatentDiffusion", options: Drawing) -> Tensor:
    """Images (N, 3, H, W) in about [-1, 1]. Raises UserError for options that do not fit the model."""
    planned = plan(model, options)
    second = second_stage(model)
    known = _known_latents(model, options, planned)
    images = []
    for first in range(0, planned.count, options.batch):
        rows = slice(first, min(planned.count, first + options.batch))
        denoise = _denoise(model, options, planned, rows)
        sampler: Sampler[Any] = build_sampler(planned.choice.sampler)
        latent, keep = (None, None) if known is None else (part[rows] for part in known)
        if latent is not None and keep is not None:
            # as the original: its DDPM puts the known region in after a step, its other samplers before
            order: Literal["before", "after"] = "after" if planned.choice.sampler.kind == "ddpm" else "before"
            sampler = KnownRegion(sampler, latent, keep, order)
        latents = generate.generate_latents(
            denoise,
            second.schedule,
            sampler,
            planned.times,
            planned.shape,
            SampleNoise(planned.seeds[rows], device=model.device),
            options.callback,
            None if options.start is None else options.start[rows],
        )
        if latent is not None and keep is not None:
            latents = keep * latent + (1 - keep) * latents
        images.append(model.decode(latents, options.decoder, options.memory))
    return torch.cat(images)


def chosen(
    second: "SecondStage", sampler: str | SamplerConfig, grid: GridConfig | None, steps: int, guidance: float = 1.0
) -> Choice:
    """The sampler by name, configuration or "auto", and its grid. Raises UserError for an unknown name."""
    if isinstance(sampler, str) and sampler != AUTO:
        if sampler not in SAMPLERS:
            known = [AUTO, *SAMPLERS]
            raise UserError(f"sampler {sampler!r} is not one of {', '.join(known)}{nearest(sampler, known)}")
        sampler = SAMPLERS[sampler].config()  # type: ignore[assignment]  # a member of the union
    if isinstance(sampler, str):
        picked = choose(second.schedule, second.config.prediction, steps, guidance)
        return picked if grid is None else Choice(picked.sampler, grid, picked.reason)
    return Choice(sampler, grid or default_grid(sampler, second.schedule), "")


def denoiser_of(model: "LatentDiffusion", condition: Condition) -> Denoise:
    """The denoise function of a model under a condition, without guidance."""
    second = second_stage(model)
    return generate.denoise_function(second.denoiser, second.schedule, second.config.prediction, condition)


def tiny_decoder(model: "LatentDiffusion") -> TinyDecoder:
    """The decoder for previews. Raises UserError where the model has none."""
    if model.tiny is None:
        raise UserError(
            "this model has no tiny decoder: make one with `sfumato distill-decoder MODEL --data DIR`, which takes "
            "minutes, or use the full decoder"
        )
    return model.tiny.network


def second_stage(model: "LatentDiffusion") -> "SecondStage":
    """The diffusion model of a model. Raises UserError where it is an autoencoder only."""
    if model.second is None:
        raise UserError("this model is an autoencoder only: train a diffusion model on it to draw samples")
    return model.second


def spread(values: Sequence[Any] | None, count: int, name: str) -> list[Any] | None:
    """One value for each of `count` samples, from one or as many. Raises UserError for another number."""
    if values is None:
        return None
    if len(values) == 1:
        return list(values) * count
    if len(values) != count:
        raise UserError(f"{len(values)} values of {name} were given for {count} samples; give one, or one for each")
    return list(values)


def _denoise(model: "LatentDiffusion", options: Drawing, planned: Plan, rows: slice) -> Denoise:
    """The guided denoise function of a batch: each guidance wraps what the one before gave."""
    second = second_stage(model)
    condition, null = _conditions(model, options, planned, rows)
    scales = planned.scales[rows]
    scale: float | Tensor = scales[0] if len(set(scales)) == 1 else torch.tensor(scales, device=model.device)
    guidance = Guidance(scale, options.interval, options.rescale, options.projection)
    denoiser = second.denoiser
    if options.reuse > 1:
        assert isinstance(denoiser, UNet)  # the one kind of denoiser that there is
        denoiser = Reusing.of(denoiser, options.reuse)
    denoise = generate.guided(denoiser, second.schedule, second.config.prediction, condition, null, guidance)
    if options.autoguide is not None:
        weaker = denoiser_of(options.autoguide, _conditions(options.autoguide, options, planned, rows)[0])
        denoise = autoguidance(denoise, weaker, options.autoguide_scale, options.interval, guidance.combine())
    guided = denoise
    denoise = model.over_windows(lambda _: guided, planned.shape[1:], options.window, options.overlap)
    if options.wrap is not None:
        denoise = options.wrap(denoise)
    if options.steer is not None:
        denoise = generate.steered(denoise, model.autoencoder, model.scaling, options.steer)
    return denoise


@torch.no_grad()
def _conditions(
    model: "LatentDiffusion", options: Drawing, planned: Plan, rows: slice
) -> tuple[Condition, Condition | None]:
    texts, labels = planned.texts and planned.texts[rows], planned.labels and planned.labels[rows]
    negatives = planned.negatives and planned.negatives[rows]
    n = len(planned.seeds[rows])
    if options.condition is None:
        return model.condition(n, texts, labels, planned.size, negatives)
    given = take(options.condition, rows)
    if second_stage(model).config.condition_dropout == 0 and negatives is None:
        return given, None  # the model knows no unconditional case
    return given, model.condition(n, size=planned.size, negative=negatives)[1]


def _scales(model: "LatentDiffusion", options: Drawing, count: int, steers: bool) -> list[float]:
    given = options.guidance
    if given is None and options.autoguide is not None:
        given = 1.0
    listed = [given] if given is None or isinstance(given, float | int) else list(given)
    each = spread([model.guidance_scale(one, steers) for one in listed], count, "guidance")
    assert each is not None
    return each


def _checked_size(model: "LatentDiffusion", options: Drawing) -> tuple[int, int]:
    """(H, W), a multiple of what the two networks together divide by."""
    if (options.known is None) != (options.keep is None):
        raise UserError("known and keep go together: the pictures, and which of their pixels stay")
    of_known = None if options.known is None else (options.known.shape[-2], options.known.shape[-1])
    size = options.size or of_known or model.config.image_size
    for name, value in (("known", options.known), ("keep", options.keep)):
        if value is not None and (value.dim() != 4 or tuple(value.shape[-2:]) != size):
            raise UserError(
                f"{name} has the shape {tuple(value.shape)}, pictures of {size[0]}x{size[1]} were asked for"
            )
    second = second_stage(model)
    factor = model.autoencoder.factor * second.config.denoiser.factor
    model.latent_shape_of(size)
    check_multiple(size, factor, f"{factor}, the downsampling factors of this model's two networks together")
    return size


def check_multiple(size: tuple[int, int], factor: int, said: str) -> None:
    """Raises UserError for a size (H, W) that is not a multiple of the factor, which is `said`."""
    if min(size) < factor or size[0] % factor or size[1] % factor:
        near = [max(factor, round(side / factor) * factor) for side in size]
        raise UserError(
            f"size {size[0]}x{size[1]} (height x width) is not a multiple of {said}; the nearest is {near[0]}x{near[1]}"
        )


def _check_helpers(model: "LatentDiffusion", options: Drawing) -> None:
    """Raises UserError for a weaker model of another latent space, for steering through packed networks, and for what
    reuse does not go with."""
    second = second_stage(model)
    weaker = options.autoguide
    if weaker is not None:
        other = second_stage(weaker)
        same = [
            (weaker.config.autoencoder, model.config.autoencoder, "autoencoder"),
            (weaker.scaling.shift.tolist(), model.scaling.shift.tolist(), "scaling of latents"),
            (weaker.scaling.scale.tolist(), model.scaling.scale.tolist(), "scaling of latents"),
            (other.config.schedule, second.config.schedule, "noise schedule"),
        ]
        unlike = next((name for theirs, ours, name in same if theirs != ours), None)
        if unlike is not None:
            raise UserError(f"autoguide has another {unlike} than this model: give an earlier or smaller version of it")
    if options.reuse < 1:
        raise UserError(f"reuse is {options.reuse}: give at least 1, which is off")
    if options.reuse > 1 and (options.steer is not None or options.window != 0):
        against = "steer, whose gradients need whole calls" if options.steer else "windows, which share calls"
        raise UserError(f"reuse {options.reuse} does not go with {against}: leave either out")
    networks = [model.autoencoder, second.denoiser]
    packed = (PackedConv2d, PackedLinear)
    if options.steer is not None and any(isinstance(m, packed) for network in networks for m in network.modules()):
        raise UserError(
            "steer needs gradients, which packed networks do not give: load the model without for_inference"
        )


def _check_decoder(model: "LatentDiffusion", name: str) -> None:
    """Raises UserError for a decoder that is unknown, or that the model has not."""
    if name not in get_args(DecoderName):
        raise UserError(f"decoder {name!r} is not one of {', '.join(get_args(DecoderName))}")
    if name == "tiny":
        tiny_decoder(model)


@torch.no_grad()
def _known_latents(model: "LatentDiffusion", options: Drawing, planned: Plan) -> tuple[Tensor, Tensor] | None:
    """The known latents (N, C, h, w) and what of them is kept (N, 1, h, w)."""
    if options.known is None or options.keep is None:
        return None
    for name, value in (("known", options.known), ("keep", options.keep)):
        if len(value) not in (1, planned.count):
            raise UserError(f"{len(value)} pictures of {name} were given for {planned.count} samples: give one, or all")
    latent = generate.encode(model.autoencoder, model.scaling, options.known.to(model.device), memory=options.memory)
    keep = generate.latent_keep(options.keep.to(model.device), model.autoencoder.factor)
    return latent.expand(planned.count, -1, -1, -1), keep.expand(planned.count, -1, -1, -1)
