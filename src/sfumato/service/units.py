"""From a job to units, one for each image, and which units can be computed in one batch."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from PIL import Image, ImageColor
from torch import Tensor

from sfumato.conditioning.condition import take
from sfumato.images import to_pil, to_unit
from sfumato.model import LatentDiffusion
from sfumato.pipeline.options import options_of
from sfumato.pipeline.request import ImageGuidance, Projection, SampleRequest
from sfumato.sampling.image_losses import Colour, Together
from sfumato.service.declarations import TASKS, WORDS
from sfumato.service.jobs import Job
from sfumato.tasks.editing import editing_tasks
from sfumato.tasks.inpainting import inpainting_tasks
from sfumato.tasks.interpolation import interpolation_request, stops_of
from sfumato.tasks.layout import Box, layout_tasks
from sfumato.tasks.outpainting import Extent, outpainting_task
from sfumato.tasks.requests import Task
from sfumato.tasks.semantic import semantic_tasks
from sfumato.tasks.super_resolution import upscaling_tasks

PAIRS = ("interval", "size", "jumps")
PER_IMAGE = ("prompt", "label", "negative", "condition", "fields", "noise", "initial", "known", "keep")
"""Options of a request that differ from image to image of a batch; of these only the shapes must be equal."""
NOT_COMPARED = ("count", "seed", "seeds", "callback", "on_record", "batch")


@dataclass(frozen=True, eq=False)
class Unit:
    """One image of a job: its request, and what makes the result of the pipeline's image (3, H, W)."""

    job: Job
    index: int
    request: SampleRequest
    finish: Callable[[Tensor], Image.Image]

    @property
    def seed(self) -> int:
        """Its own."""
        return self.job.seeds[self.index]

    @property
    def way(self) -> tuple[Any, ...]:
        """Units of equal ways can be computed in one batch of one model."""
        return (self.job.known.id, self.job.known.stamp, *way_of(self.request))


def way_of(request: SampleRequest) -> tuple[Any, ...]:
    """The shared options of a batch's requests: every option that is not an image's own, and shapes."""
    made: list[Any] = []
    for one in options_of(SampleRequest):
        value = getattr(request, one.name)
        if one.name in NOT_COMPARED:
            continue
        made.append(_shape(value) if one.name in PER_IMAGE else _comparable(value))
    return tuple(made)


def _shape(value: Any) -> Any:
    if isinstance(value, Tensor):
        return (str(value.dtype), *value.shape[1:])
    if isinstance(value, Mapping):
        return tuple(sorted((name, _shape(each)) for name, each in value.items()))
    if hasattr(value, "tensors"):
        return _shape(value.tensors())
    return "given" if value is not None else "none"


def _comparable(value: Any) -> Any:
    """A plain value as text; of functions and models the same object only."""
    plain = isinstance(value, str | int | float | tuple | list | dict | Projection) or value is None
    return repr(value) if plain else id(value)


def options_of_body(body: Mapping[str, Any], names: tuple[str, ...] | None = None) -> dict[str, Any]:
    """The options of a SampleRequest in a body, as Python values; the words are left out."""
    known = {one.name for one in options_of(SampleRequest)}
    made = {}
    for name, value in body.items():
        if name not in known or name in WORDS or (names is not None and name not in names):
            continue
        if name in PAIRS and value is not None:
            value = tuple(value)
        elif name == "projection" and value is not None:
            value = Projection(**value)
        made[name] = value
    return made


def colours(body: Mapping[str, Any]) -> ImageGuidance | None:
    """The image guidance by colours of a body."""
    named = body.get("image_guidance")
    if not named:
        return None
    losses = tuple(Colour(to_unit(torch.tensor(ImageColor.getcolor(one, "RGB")))) for one in named)
    return ImageGuidance(Together(losses), body["image_guidance_scale"])


def units_of(job: Job, model: LatentDiffusion, memory: int, weaker: LatentDiffusion | None = None) -> list[Unit]:
    """The units of a job. Images are encoded here. Raises UserError for what does not fit the model."""
    body = job.request
    if job.task == "sample":
        return _of_sample(job, weaker)
    if job.task == "interpolate":
        return _of_interpolation(job, model)
    options = SampleRequest(**_of_task(body), memory=memory)
    task = _task(job, model, memory)
    joined = replace(
        options,
        **{name: getattr(task.request, name) for name in (*PER_IMAGE, "size", "strength", "jumps")},
        count=1,
        seed=0,
    )
    return [Unit(job, index, replace(joined, seeds=[seed]), task.finish) for index, seed in enumerate(job.seeds)]


def _of_task(body: Mapping[str, Any]) -> dict[str, Any]:
    taken = {"size", "jumps", "strength", "seeds", "count", "seed"}
    return {name: value for name, value in options_of_body(body).items() if name not in taken}


def _task(job: Job, model: LatentDiffusion, memory: int) -> Task[Image.Image]:
    body, images = job.request, job.images
    words = {name: body[name] for name in TASKS[job.task].words}
    prompt = words.pop("prompt")
    prompts = None if prompt is None else [prompt]
    jumps = None if body.get("jumps") is None else tuple(body["jumps"])
    match job.task:
        case "inpaint":
            each = inpainting_tasks(
                model,
                [images["image"]],
                [images["mask"]],
                prompts,
                feather=body["feather"],
                jumps=jumps,
                memory=memory,
                **words,
            )
        case "outpaint":
            extent = Extent(*body["extend"])
            return outpainting_task(model, images["image"], extent, prompt, jumps=jumps, memory=memory, **words)
        case "edit":
            each = editing_tasks(
                model,
                [images["image"]],
                prompts,
                strength=body["strength"],
                style=images.get("style"),
                style_amount=body["style_amount"],
                memory=memory,
                **words,
            )
        case "upscale":
            each = upscaling_tasks(model, [images["image"]], prompts, keep_colours=body["keep_colours"])
        case "semantic":
            each = semantic_tasks(model, [images["map"]], prompts, **words)
        case _:
            size = None if body["size"] is None else tuple(body["size"])
            boxes = [Box(one["label"], tuple(one["box"])) for one in body["boxes"]]
            each = layout_tasks(model, [boxes], prompts, size=size, **words)
    return each[0]


def row_of(value: Any, index: int) -> Any:
    """The entry of an image, where a value may be one or one for each."""
    if isinstance(value, list):
        return value[index] if len(value) > 1 else value[0]
    return value


def _of_sample(job: Job, weaker: LatentDiffusion | None) -> list[Unit]:
    body = job.request
    options = {name: value for name, value in options_of_body(body).items() if name not in ("count", "seed", "seeds")}
    options |= {"image_guidance": colours(body), "autoguide": weaker}
    made = []
    for index, seed in enumerate(job.seeds):
        own = {name: row_of(body[name], index) for name in (*WORDS, "guidance")}
        request = SampleRequest(**{**options, **own}, count=1, seeds=[seed])
        made.append(Unit(job, index, request, to_pil))
    return made


def _of_interpolation(job: Job, model: LatentDiffusion) -> list[Unit]:
    body = job.request
    options = {name: value for name, value in options_of_body(body).items() if name not in ("count", "seed", "seeds")}
    stops = stops_of(body["seeds"], listed(body["prompt"]), listed(body["label"]))
    whole = interpolation_request(model, stops, body["frames"], SampleRequest(**options))
    made = []
    for index, seed in enumerate(job.seeds):
        rows = slice(index, index + 1)
        request = replace(
            whole,
            count=1,
            seeds=[seed],
            noise=None if whole.noise is None else whole.noise[rows],
            condition=None if whole.condition is None else take(whole.condition, rows),
        )
        made.append(Unit(job, index, request, to_pil))
    return made


def listed(value: Any) -> list[Any] | None:
    """One or several as a list."""
    return value if value is None or isinstance(value, list) else [value]
