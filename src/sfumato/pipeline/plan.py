"""All checks of a request against a model, before any network is called: request + model -> a plan."""

import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, get_args

from torch import Tensor

from sfumato.conditioning.lengths import cut_texts
from sfumato.conditioning.table import CompositeConfig
from sfumato.config import nearest
from sfumato.engine.packing import PackedConv2d, PackedLinear
from sfumato.errors import UserError
from sfumato.pipeline.choices import chosen_steps
from sfumato.pipeline.conditions import ConditionSource, Words, check_words, complete_fields, is_given, source_of
from sfumato.pipeline.memory import check_memory
from sfumato.pipeline.parts import Model, canvas_factor, check_multiple, latent_shape, second_stage, tiny_decoder
from sfumato.pipeline.request import DEFAULT_GUIDANCE, MOST_IMAGES, DecoderName, SampleRequest
from sfumato.sampling.auto import Choice
from sfumato.sampling.grids import tail
from sfumato.sampling.inpainting import with_jumps
from sfumato.sampling.windows import windows

WHOLE_AREAS = 4
"""Images of up to this many times the training area are denoised as a whole, where windows are left to the model."""


class NoteWarning(UserWarning):
    """Something that a user should know of a request, a sentence."""


@dataclass(frozen=True)
class Plan:
    """A checked request: what is sampled, and by which sampler at which times.

    Attributes:
        count: how many.
        words: prompts, labels and negatives, one for each.
        fields: what else the conditioner reads, a row for each.
        scales: a guidance scale for each.
        parts: guidance scales by the part of a composite condition; scales then has the largest.
        seeds: one for each.
        size: (H, W); shape: (C, h, w); window: (h, w) of the windows, which may be all.
        choice: sampler, grid and the reason of the choice, empty where the user chose.
        times: the falling times of the sampling loop; with jumps they rise in between; one where nothing is sampled.
        notes: what a user should know, a sentence each.
    """

    count: int
    words: Words
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
        """Steps of a batch."""
        return len(self.times) - 1


def plan(model: Model, request: SampleRequest) -> Plan:
    """Checks the request against the model. Raises UserError for what does not fit."""
    second, source = second_stage(model), source_of(model)
    count = _count(request)
    words = Words(
        spread(_listed(request.prompt), count, "prompts"),
        spread(_listed(request.label), count, "labels"),
        spread(_listed(request.negative), count, "negative prompts"),
    )
    fields = _spread_fields(request.fields, count)
    size = _checked_size(model, request, count)
    shape = latent_shape(model, size)
    given = request.condition is not None or is_given(words, fields)
    _check_conditions(source, request, words, fields, count)
    parts = _part_scales(source, request, words, given)
    scales = [max(parts.values())] * count if parts else _scales(source, request, count, given)
    _check_guidance(model, request, scales, parts)
    _check_decoder(model, request.decoder)
    steps = chosen_steps(second, request, max(scales))
    _check_latents(request, count, shape)
    return Plan(
        count=count,
        words=words,
        fields=fields,
        scales=scales,
        parts=parts,
        seeds=_seeds(request, count),
        size=size,
        shape=shape,
        window=_window(model, request, shape),
        choice=steps.choice,
        times=_times(request, steps.times),
        notes=notes_of(source, words),
    )


def warn_of(notes: Iterable[str]) -> None:
    """Warns of each note once, for those who sample from Python; commands print them (`sfumato.cli.options.notes`)."""
    for note in dict.fromkeys(notes):
        warnings.warn(note, NoteWarning, stacklevel=3)


def guidance_scale(source: ConditionSource, guidance: float | None, given: bool = True) -> float:
    """The scale that is used where `guidance` is asked for; 1 where no condition is `given`, as nothing can lead.

    Raises UserError where the model does not know the unconditional case.
    """
    if source.conditioner is None:
        if guidance not in (None, 1.0):
            raise UserError(f"guidance {guidance:g} needs a condition, but this model was trained without any")
        return 1.0
    if source.dropout == 0:
        if guidance not in (None, 1.0):
            raise UserError(
                f"guidance {guidance:g} cannot work: this model was trained without condition dropout "
                "(train.condition_dropout), so it does not know the unconditional case; use guidance 1"
            )
        return 1.0
    if not given:
        return 1.0
    return DEFAULT_GUIDANCE if guidance is None else guidance


def spread(values: Sequence[Any] | None, count: int, name: str) -> list[Any] | None:
    """One value for each of `count` samples, from one or as many. Raises UserError for another number."""
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
        raise UserError(f"{len(seeds)} seeds were given for {count} samples")
    return seeds


def _spread_fields(fields: Mapping[str, Any] | None, count: int) -> dict[str, Any] | None:
    """A row for each sample, from one for all or one each."""
    if fields is None:
        return None
    made = {}
    for name, value in fields.items():
        if len(value) not in (1, count):
            raise UserError(f"{len(value)} rows of {name} were given for {count} samples; give one, or one for each")
        rows = [0] * count if len(value) == 1 else list(range(count))
        made[name] = value[rows] if isinstance(value, Tensor) else [value[row] for row in rows]
    return made


def _checked_size(model: Model, request: SampleRequest, count: int) -> tuple[int, int]:
    """(H, W), a multiple of what the two networks together divide by."""
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
    source: ConditionSource, request: SampleRequest, words: Words, fields: Mapping[str, Any] | None, count: int
) -> None:
    check_words(source, words)
    if request.condition is not None:
        if words.prompts is not None or words.labels is not None or fields:
            raise UserError("a ready-made condition stands instead of prompt, label and fields: leave them out")
        rows = {len(value) for value in request.condition.tensors().values()}
        if rows - {count}:
            raise UserError(f"the condition has {rows.pop()} rows for {count} samples: give one for each")
        return
    if source.conditioner is not None and (source.dropout == 0 or is_given(words, fields)):
        complete_fields(source, count, words, fields)


def _scales(source: ConditionSource, request: SampleRequest, count: int, given: bool) -> list[float]:
    asked = request.guidance
    assert not isinstance(asked, Mapping)
    if asked is None and request.autoguide is not None:
        asked = 1.0
    listed = [asked] if asked is None or isinstance(asked, float | int) else list(asked)
    each = spread([guidance_scale(source, one, given) for one in listed], count, "guidance scales")
    assert each is not None
    return each


def _part_scales(source: ConditionSource, request: SampleRequest, words: Words, given: bool) -> dict[str, float] | None:
    """Guidance scales by the name of a part, None where there is one scale. Raises UserError for unknown parts."""
    scales = request.guidance
    if not isinstance(scales, Mapping):
        return None
    listed = ", ".join(f"{name}={scale:g}" for name, scale in scales.items())
    if not isinstance(source.config, CompositeConfig):
        raise UserError(
            f"guidance {listed} is for a model with parts, and this one's condition has none: give one number"
        )
    if not scales:
        raise UserError("guidance names no parts: give a scale for one at least, or one number")
    dropped = [name for name, rate in source.part_dropout.items() if rate > 0]
    known = list(source.config.parts)
    for name in scales:
        if name not in known:
            raise UserError(
                f"guidance {listed}: {name!r} is not one of the parts {', '.join(known)}{nearest(name, known)}"
            )
        if name not in dropped:
            raise UserError(
                f"guidance {listed} cannot work: this model was trained without dropping {name!r} alone "
                f"(train.part_dropout has {', '.join(dropped) or 'no part'}); leave it out, or give one number"
            )
    if words.negatives is not None:
        raise UserError(
            f"guidance {listed} guides away from missing parts, not from a negative prompt: give one of the two"
        )
    if request.rescale or request.projection is not None:
        raise UserError(f"guidance {listed} for parts does not go with rescale or projection: give one number")
    if not given:
        raise UserError("guidance for parts needs something that conditions: give a prompt or a label")
    return dict(scales)


def _check_guidance(model: Model, request: SampleRequest, scales: list[float], parts: dict[str, float] | None) -> None:
    """Raises UserError for a weaker model of another latent space, gradients through packed networks, negative prompts
    without guidance, and for what reuse does not go with."""
    if request.negative is not None and not parts and set(scales) == {1.0}:
        raise UserError("negative prompts work through guidance, which is off: give guidance above 1, such as 3")
    if request.autoguide is not None:
        _check_weaker(model, request.autoguide)
    if request.reuse > 1 and (request.image_guidance is not None or request.window != 0):
        guided = request.image_guidance is not None
        against = "image guidance, whose gradients need whole calls" if guided else "windows, which share calls"
        raise UserError(f"reuse {request.reuse} does not go with {against}: leave either out")
    networks = [model.autoencoder, second_stage(model).denoiser]
    packed = any(isinstance(m, PackedConv2d | PackedLinear) for network in networks for m in network.modules())
    if request.image_guidance is not None and packed:
        raise UserError(
            "image guidance needs gradients, which packed networks do not give: load the model without for_inference"
        )


def _check_weaker(model: Model, weaker: Model) -> None:
    second, other = second_stage(model), second_stage(weaker)
    same = [
        (weaker.config.autoencoder, model.config.autoencoder, "autoencoder"),
        (weaker.scaling.shift.tolist(), model.scaling.shift.tolist(), "scaling of latents"),
        (weaker.scaling.scale.tolist(), model.scaling.scale.tolist(), "scaling of latents"),
        (other.config.schedule, second.config.schedule, "noise schedule"),
    ]
    unlike = next((name for theirs, ours, name in same if theirs != ours), None)
    if unlike is not None:
        raise UserError(f"autoguide has another {unlike} than this model: give an earlier or smaller version of it")


def _check_decoder(model: Model, name: str) -> None:
    if name not in get_args(DecoderName):
        raise UserError(f"decoder {name!r} is not one of {', '.join(get_args(DecoderName))}")
    if name == "tiny":
        tiny_decoder(model)


def _check_latents(request: SampleRequest, count: int, shape: tuple[int, int, int]) -> None:
    """Raises UserError for latents and masks of other shapes than the samples'."""
    if (request.known is None) != (request.keep is None):
        raise UserError("known and keep go together: the latents, and which of their positions stay")
    if request.jumps is not None and request.known is None:
        raise UserError("jumps go with known and keep: nothing is kept here")
    if request.noise is not None and tuple(request.noise.shape) != (count, *shape):
        raise UserError(f"noise has the shape {tuple(request.noise.shape)}, {count} samples need {(count, *shape)}")
    mask = (1, *shape[1:])
    for name, value, wanted in (
        ("initial", request.initial, shape),
        ("known", request.known, shape),
        ("keep", request.keep, mask),
    ):
        if value is not None and (tuple(value.shape[1:]) != wanted or len(value) not in (1, count)):
            raise UserError(
                f"{name} has the shape {tuple(value.shape)}, {count} samples need {(count, *wanted)}, or one for all"
            )


def _window(model: Model, request: SampleRequest, shape: tuple[int, int, int]) -> tuple[int, int]:
    """(h, w) of the windows of a latent. Raises UserError for a side that the networks' factors do not divide."""
    f, factor, size = model.autoencoder.factor, canvas_factor(model), shape[1:]
    trained = (model.config.image_size[0] // f, model.config.image_size[1] // f)
    if request.window is None:
        sides = trained if size[0] * size[1] > WHOLE_AREAS * trained[0] * trained[1] else size
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


def notes_of(source: ConditionSource, words: Words) -> tuple[str, ...]:
    """What a user should know of the prompts: those that are cut, how many and an example."""
    texts = [text for part in (words.prompts, words.negatives) if part is not None for text in dict.fromkeys(part)]
    cut = cut_texts(source.conditioner, texts)
    if not cut:
        return ()
    first = cut[0]
    which = "1 prompt is" if len(cut) == 1 else f"{len(cut)} prompts are"
    example = first.text if len(first.text) <= 60 else f"{first.text[:57]}..."
    return (
        f"{which} longer than the {first.limit} tokens that this model reads, and cut there: for example "
        f"{example!r}, of {first.tokens} tokens",
    )
