"""All checks of a request against a model, before any network is called: request + model -> a plan."""

import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, get_args

from torch import Tensor

from sfumato.conditioning.lengths import cut_texts
from sfumato.conditioning.table import CompositeConfig
from sfumato.config import nearest
from sfumato.counts import how_many
from sfumato.denoiser.unet import UNet
from sfumato.engine.packing import PackedConv2d, PackedLinear
from sfumato.errors import UserError
from sfumato.pipeline.choices import chosen_steps
from sfumato.pipeline.conditions import (
    ConditionInputs,
    ConditionSource,
    check_inputs,
    complete_fields,
    has_condition,
    source_of,
)
from sfumato.pipeline.memory import check_memory
from sfumato.pipeline.parts import Model, canvas_factor, check_multiple, latent_shape, second_stage, tiny_decoder
from sfumato.pipeline.request import DEFAULT_GUIDANCE, MOST_IMAGES, DecoderName, SampleRequest
from sfumato.pipeline.students import check_student
from sfumato.sampling.auto import Choice
from sfumato.sampling.grids import tail
from sfumato.sampling.inpainting import with_jumps
from sfumato.sampling.windows import windows

WHOLE_AREAS = 4
"""Images of up to this many times the training area are denoised as a whole, unless the request sets a window."""


class NoteWarning(UserWarning):
    """A note on a request for the user, one sentence."""


@dataclass(frozen=True)
class Plan:
    """A checked request: what is sampled, and by which sampler at which times.

    Attributes:
        count: number of images.
        inputs: prompts, labels and negatives, one for each image.
        fields: other fields that the conditioner reads, a row for each image.
        scales: a guidance scale for each image.
        parts: guidance scales by the part of a composite condition; scales then has the largest.
        seeds: one for each image.
        size: (H, W); shape: (C, h, w); window: (h, w) of the windows, possibly the whole latent.
        choice: sampler, grid and the reason for the choice, empty where the user chose.
        times: the falling times of the sampling loop; with jumps they rise in between; one if nothing is sampled.
        notes: notes for the user, a sentence each.
    """

    count: int
    inputs: ConditionInputs
    fields: Mapping[str, Any] | None
    scales: list[float]
    parts: dict[str, float] | None
    seeds: list[int]
    size: tuple[int, int]
    shape: tuple[int, int, int]
    window: tuple[int, int]
    choice: Choice
    times: Tensor
    notes: tuple[str, ...]

    @property
    def steps(self) -> int:
        """Sampling steps of a batch."""
        return len(self.times) - 1


def plan(model: Model, request: SampleRequest) -> Plan:
    """Checks the request against the model. Raises UserError for what does not fit."""
    second, source = second_stage(model), source_of(model)
    count = _count(request)
    inputs = ConditionInputs(
        spread(_listed(request.prompt), count, "prompts"),
        spread(_listed(request.label), count, "labels"),
        spread(_listed(request.negative), count, "negative prompts"),
    )
    fields = _spread_fields(request.fields, count)
    size = _checked_size(model, request, count)
    shape = latent_shape(model, size)
    conditioned = request.condition is not None or has_condition(inputs, fields)
    _check_conditions(source, request, inputs, fields, count)
    parts = _part_scales(source, request, inputs, conditioned)
    scales = [max(parts.values())] * count if parts else _scales(source, request, count, conditioned)
    _check_guidance(model, request, scales, parts)
    if second.config.student is not None:
        check_student(second.config.student, request, scales)
    _check_decoder(model, request.decoder)
    steps = chosen_steps(second, request, max(scales))
    _check_latents(request, count, shape)
    return Plan(
        count=count,
        inputs=inputs,
        fields=fields,
        scales=scales,
        parts=parts,
        seeds=_seeds(request, count),
        size=size,
        shape=shape,
        window=window_of(model, request, shape),
        choice=steps.choice,
        times=_times(request, steps.times),
        notes=notes_of(source, inputs),
    )


def warn_of(notes: Iterable[str]) -> None:
    """Warns of each note once, for use from Python; commands print them (`sfumato.cli.options.notes`)."""
    for note in dict.fromkeys(notes):
        warnings.warn(note, NoteWarning, stacklevel=3)


def guidance_scale(source: ConditionSource, guidance: float | None, conditioned: bool = True) -> float:
    """The effective scale for the option `guidance`; 1 for samples that are not `conditioned`.

    Raises UserError where the model was not trained unconditionally.
    """
    if source.conditioner is None:
        if guidance not in (None, 1.0):
            raise UserError(f"guidance {guidance:g} requires a condition, but this model was trained without any")
        return 1.0
    if source.dropout == 0:
        if guidance not in (None, 1.0):
            raise UserError(
                f"guidance {guidance:g} is not possible: this model was trained without condition dropout "
                "(train.condition_dropout), so it has no unconditional mode; use guidance 1"
            )
        return 1.0
    if not conditioned:
        return 1.0
    return DEFAULT_GUIDANCE if guidance is None else guidance


def spread(values: Sequence[Any] | None, count: int, name: str) -> list[Any] | None:
    """One value for each of `count` samples, from one or `count` values. Raises UserError for another number."""
    if values is None:
        return None
    if len(values) == 1:
        return list(values) * count
    if len(values) != count:
        raise UserError(f"{len(values)} {name} were given for {count} samples; give one, or one for each")
    return list(values)


def _listed(value: Any) -> Sequence[Any] | None:
    """A single prompt or label as a list of one."""
    return [value] if isinstance(value, str | int) else value


def _count(request: SampleRequest) -> int:
    several = [_listed(request.prompt), _listed(request.label), request.seeds, request.known, request.noise]
    several += [request.initial, *(request.fields or {}).values()]
    if request.condition is not None:
        several += list(request.condition.tensors().values())
    count = request.count or max([1, *(len(v) for v in several if v is not None)])
    if count > MOST_IMAGES:
        raise UserError(f"{count:,} images are too many for one request: give at most {MOST_IMAGES:,}")
    return count


def _seeds(request: SampleRequest, count: int) -> list[int]:
    seeds = list(request.seeds) if request.seeds is not None else [request.seed + i for i in range(count)]
    if len(seeds) != count:
        raise UserError(f"{how_many(len(seeds), 'seed was', 'seeds were')} given for {how_many(count, 'sample')}")
    return seeds


def _spread_fields(fields: Mapping[str, Any] | None, count: int) -> dict[str, Any] | None:
    """A row for each sample, from a single row or one each."""
    if fields is None:
        return None
    per_sample = {}
    for name, value in fields.items():
        if len(value) not in (1, count):
            raise UserError(
                f"{how_many(len(value), 'row')} of {name} for {how_many(count, 'sample')}; give one, or one for each"
            )
        rows = [0] * count if len(value) == 1 else list(range(count))
        per_sample[name] = value[rows] if isinstance(value, Tensor) else [value[row] for row in rows]
    return per_sample


def _checked_size(model: Model, request: SampleRequest, count: int) -> tuple[int, int]:
    """(H, W), a multiple of `canvas_factor`."""
    f = model.autoencoder.factor
    latents = [value for value in (request.known, request.initial, request.noise) if value is not None]
    of_latent = (latents[0].shape[-2] * f, latents[0].shape[-1] * f) if latents else None
    size = request.size or of_latent or model.config.image_size
    latent_shape(model, size)
    factor = canvas_factor(model)
    check_multiple(size, factor, f"{factor}, the downsampling factors of this model's two networks together")
    check_memory(size, min(request.batch, count))
    return size


def _check_conditions(
    source: ConditionSource,
    request: SampleRequest,
    inputs: ConditionInputs,
    fields: Mapping[str, Any] | None,
    count: int,
) -> None:
    check_inputs(source, inputs)
    if request.condition is not None:
        if inputs.prompts is not None or inputs.labels is not None or fields:
            raise UserError("a ready-made condition replaces prompt, label and fields: leave them out")
        rows = {len(value) for value in request.condition.tensors().values()}
        if rows - {count}:
            raise UserError(
                f"the condition has {how_many(rows.pop(), 'row')} for {how_many(count, 'sample')}: give one for each"
            )
        return
    if source.conditioner is not None and (source.dropout == 0 or has_condition(inputs, fields)):
        complete_fields(source, count, inputs, fields)


def _scales(source: ConditionSource, request: SampleRequest, count: int, conditioned: bool) -> list[float]:
    requested = request.guidance
    assert not isinstance(requested, Mapping)
    if requested is None and request.autoguide is not None:
        requested = 1.0
    listed = [requested] if requested is None or isinstance(requested, float | int) else list(requested)
    each = spread([guidance_scale(source, one, conditioned) for one in listed], count, "guidance scales")
    assert each is not None
    return each


def _part_scales(
    source: ConditionSource, request: SampleRequest, inputs: ConditionInputs, conditioned: bool
) -> dict[str, float] | None:
    """Guidance scales by the name of a part, None for a single scale. Raises UserError for unknown parts."""
    scales = request.guidance
    if not isinstance(scales, Mapping):
        return None
    listed = ", ".join(f"{name}={scale:g}" for name, scale in scales.items())
    if not isinstance(source.config, CompositeConfig):
        raise UserError(
            f"guidance {listed} requires a model with condition parts, and this one has none: give one number"
        )
    if not scales:
        raise UserError("guidance names no parts: give a scale for at least one, or one number")
    dropped = [name for name, rate in source.part_dropout.items() if rate > 0]
    known = list(source.config.parts)
    for name in scales:
        if name not in known:
            raise UserError(
                f"guidance {listed}: {name!r} is not one of the parts {', '.join(known)}{nearest(name, known)}"
            )
        if name not in dropped:
            raise UserError(
                f"guidance {listed} is not possible: this model was trained without dropping {name!r} "
                f"alone (train.part_dropout has {', '.join(dropped) or 'no part'}); leave it out, or give one number"
            )
    if inputs.negatives is not None:
        raise UserError(
            f"guidance {listed} moves away from missing parts, not from a negative prompt: give one of the two"
        )
    if request.rescale or request.projection is not None:
        raise UserError(f"guidance {listed} for parts cannot be combined with rescale or projection: give one number")
    if not conditioned:
        raise UserError("guidance for parts requires a condition: give a prompt or a label")
    return dict(scales)


def _check_guidance(model: Model, request: SampleRequest, scales: list[float], parts: dict[str, float] | None) -> None:
    """Raises UserError for a weaker model of another latent space, gradients through packed networks, negative prompts
    without guidance, and options that cannot be combined with reuse."""
    if request.negative is not None and not parts and set(scales) == {1.0}:
        raise UserError("negative prompts act through guidance, which is off: give guidance above 1, such as 3")
    if request.autoguide is not None:
        _check_weaker(model, request.autoguide)
    if request.reuse > 1 and (request.image_guidance is not None or request.window != 0):
        guided = request.image_guidance is not None
        against = "image guidance, whose gradients need complete calls" if guided else "windows, which share calls"
        raise UserError(f"reuse {request.reuse} cannot be combined with {against}: leave out one of them")
    if request.reuse > 1 and not isinstance(second_stage(model).denoiser, UNet):
        raise UserError(
            f"reuse {request.reuse} keeps features of a U-Net, and the model's denoiser is of kind "
            f"{second_stage(model).config.denoiser.kind}: leave it out"
        )
    networks = [model.autoencoder, second_stage(model).denoiser]
    packed = any(isinstance(m, PackedConv2d | PackedLinear) for network in networks for m in network.modules())
    if request.image_guidance is not None and packed:
        raise UserError(
            "image guidance requires gradients, which packed networks do not have: load the model without for_inference"
        )


def _check_weaker(model: Model, weaker: Model) -> None:
    second, other = second_stage(model), second_stage(weaker)
    same = [
        (weaker.config.autoencoder, model.config.autoencoder, "autoencoder"),
        (weaker.scaling.shift.tolist(), model.scaling.shift.tolist(), "scaling of latents"),
        (weaker.scaling.scale.tolist(), model.scaling.scale.tolist(), "scaling of latents"),
        (other.config.schedule, second.config.schedule, "noise schedule"),
    ]
    if other.config.student is not None:
        raise UserError(
            "autoguide is a student, which does not predict expected images: give its teacher, or a snapshot"
        )
    unlike = next((name for theirs, ours, name in same if theirs != ours), None)
    if unlike is not None:
        raise UserError(f"autoguide has another {unlike} than this model: give an earlier or smaller version of it")


def _check_decoder(model: Model, name: str) -> None:
    if name not in get_args(DecoderName):
        raise UserError(f"decoder {name!r} is not one of {', '.join(get_args(DecoderName))}")
    if name == "tiny":
        tiny_decoder(model)


def _check_latents(request: SampleRequest, count: int, shape: tuple[int, int, int]) -> None:
    """Raises UserError for latents and masks whose shapes differ from the samples'."""
    if (request.known is None) != (request.keep is None):
        raise UserError("known and keep require each other: the latents, and the mask of the positions to keep")
    if request.jumps is not None and request.known is None:
        raise UserError("jumps require known and keep")
    if request.noise is not None and tuple(request.noise.shape) != (count, *shape):
        raise UserError(f"noise has the shape {tuple(request.noise.shape)}, {count} samples need {(count, *shape)}")
    mask = (1, *shape[1:])
    for name, value, expected in (
        ("initial", request.initial, shape),
        ("known", request.known, shape),
        ("keep", request.keep, mask),
    ):
        if value is not None and (tuple(value.shape[1:]) != expected or len(value) not in (1, count)):
            raise UserError(
                f"{name} has the shape {tuple(value.shape)}, {count} samples need {(count, *expected)}, or one for all"
            )


def window_of(model: Model, request: SampleRequest, shape: tuple[int, int, int]) -> tuple[int, int]:
    """(h, w) of the windows of a latent. Raises UserError for a side that the networks' factors do not divide."""
    f, factor, size = model.autoencoder.factor, canvas_factor(model), shape[1:]
    trained = (model.config.image_size[0] // f, model.config.image_size[1] // f)
    area = max(H * W // f**2 for H, W in (model.config.image_size, *model.config.trained_sizes))
    if request.window is None:
        sides = trained if size[0] * size[1] > WHOLE_AREAS * area else size
    elif request.window == 0:
        sides = size
    elif request.window % factor:
        raise UserError(
            f"window is {request.window} pixels: give a multiple of {factor}, the downsampling factors of this model's "
            "two networks together, or 0 for none"
        )
    else:
        sides = (request.window // f, request.window // f)
    windows(size, sides, request.overlap)
    return sides


def _times(request: SampleRequest, times: Tensor) -> Tensor:
    if request.initial is not None:
        times = times[-1:] if request.strength == 0 else tail(times, request.strength)
    return times if request.jumps is None else with_jumps(times, *request.jumps)


def notes_of(source: ConditionSource, inputs: ConditionInputs) -> tuple[str, ...]:
    """Notes on the prompts: how many are truncated, with an example."""
    texts = [text for part in (inputs.prompts, inputs.negatives) if part is not None for text in dict.fromkeys(part)]
    cut = cut_texts(source.conditioner, texts)
    if not cut:
        return ()
    first = cut[0]
    which = "1 prompt is" if len(cut) == 1 else f"{len(cut)} prompts are"
    example = first.text if len(first.text) <= 60 else f"{first.text[:57]}..."
    return (
        f"{which} longer than the {first.limit} tokens that this model reads, and truncated: for example "
        f"{example!r}, of {first.tokens} tokens",
    )
