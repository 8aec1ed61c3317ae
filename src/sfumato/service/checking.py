"""Everything about a request that can be checked before it is queued: fields, bounds, what the model takes."""

from collections.abc import Mapping, Sequence
from typing import Any, get_args

from PIL import Image
from pydantic import ValidationError

from sfumato.config import nearest
from sfumato.errors import UserError
from sfumato.foreign import printable, short
from sfumato.pipeline.choices import check_names
from sfumato.pipeline.conditions import ConditionInputs, check_inputs, complete_fields, source_of
from sfumato.pipeline.options import check_number
from sfumato.pipeline.plan import plan
from sfumato.pipeline.request import DEFAULT_STEPS, SEED, SampleRequest
from sfumato.service.bodies import BODIES
from sfumato.service.declarations import WORDS, TaskName
from sfumato.service.errors import RefusedError
from sfumato.service.jobs import Job
from sfumato.service.references import References, named
from sfumato.service.registry import KnownModel, Registry
from sfumato.service.settings import ServiceSettings
from sfumato.service.units import listed, options_of_body, row_of
from sfumato.tasks.interpolation import stops_of
from sfumato.tasks.layout import Box, category, check_box
from sfumato.tasks.super_resolution import enlargement

IMAGES = {"image": False, "mask": True, "style": False, "map": True}
"""Fields that are images, and whether their values are read as they are stored."""


def checked_body(raw: Any) -> dict[str, Any]:
    """A body with its defaults. Raises RefusedError with one sentence for the first thing that is wrong."""
    if not isinstance(raw, dict):
        raise RefusedError(400, f'the body is {short(raw)}: give a JSON object such as {{"prompt": "a red circle"}}')
    task = raw.get("task", "sample")
    if task not in get_args(TaskName):
        known = get_args(TaskName)
        close = nearest(task, known) if isinstance(task, str) else ""
        raise RefusedError(400, f"task {short(task)} is not one of {', '.join(known)}{close}", "task")
    try:
        return BODIES[task].model_validate(raw).model_dump()
    except ValidationError as error:
        raise refusal_of(error, list(BODIES[task].model_fields)) from None


def refusal_of(error: ValidationError, known: Sequence[str] = ()) -> RefusedError:
    """The first of a validation's errors as one sentence."""
    problem = error.errors(include_url=False, include_context=False)[0]
    return RefusedError(400, *sentence_of(problem, known))


def sentence_of(problem: Mapping[str, Any], known: Sequence[str] = ()) -> tuple[str, str | None]:
    """One sentence on a problem that pydantic found, and the field."""
    location = [part for part in problem["loc"] if part != "body"]
    name = str(location[0]) if location else None
    if problem["type"] == "extra_forbidden" and len(location) == 1:
        return f"{short(name)} is not a field of this request{nearest(str(name), known)}", None
    if problem["type"] == "missing":
        return f"{name} is missing: this request needs it", name
    if problem["type"] == "json_invalid":
        return "the body is not JSON", None
    message = printable(str(problem["msg"])).removeprefix("Value error, ")
    value = problem.get("input")
    shown = f" {short(value)}" if isinstance(value, str | int | float | bool | None) else ""
    return f"{printable(name or 'the body')}{shown}: {message[:1].lower()}{message[1:]}", name


def job_of(raw: Any, registry: Registry, references: References, settings: ServiceSettings) -> Job:
    """The job of a body. Raises RefusedError for what is wrong in it or beyond the bounds."""
    body = checked_body(raw)
    known = registry.get(body["model"])
    body["model"] = known.id
    images = {
        name: (references.values if values else references.image)(body[name], name)
        for name, values in IMAGES.items()
        if body.get(name) is not None
    }
    for name in images:
        body[name] = named(body[name])
    return job_from(body, known, images, settings)


def job_from(
    body: dict[str, Any], known: KnownModel, images: Mapping[str, Image.Image], settings: ServiceSettings
) -> Job:
    """The job of a checked body whose images are opened. Raises RefusedError for what does not fit."""
    task: TaskName = body["task"]
    if task not in known.tasks:
        raise RefusedError(400, f"model {known.id!r} does not do {task!r}: it does {', '.join(known.tasks)}", "task")
    try:
        _check_bounds(body, settings)
        seeds, notes = _checked(task, body, known, images, settings)
    except RefusedError:
        raise
    except UserError as error:
        raise RefusedError(400, str(error)) from None
    check_number("the number of images", len(seeds), _count_range(settings))
    _check_seeds(seeds)
    job = Job(task, known, body, len(seeds), seeds, coarse_of(task, body, known, images), images)
    job.notes += notes
    return job


def _count_range(settings: ServiceSettings) -> Any:
    from sfumato.pipeline.options import Range

    return Range(1, settings.count, whole=True)


def _check_seeds(seeds: Sequence[int]) -> None:
    for seed in (seeds[0], seeds[-1]):
        if seed not in SEED:
            raise RefusedError(400, f"seed {seed} is outside the range of seeds: give {SEED}", "seed")


def coarse_of(
    task: TaskName, body: Mapping[str, Any], known: KnownModel, images: Mapping[str, Image.Image]
) -> tuple[Any, ...]:
    """The shared options of jobs that may be batched, as far as the requests show them."""
    apart = {*IMAGES, *WORDS, "seed", "seeds", "count", "boxes", "feather", "keep_colours", "style_amount"}
    if task == "interpolate":
        apart -= {"seeds"}
    sizes = tuple((name, image.size) for name, image in images.items())
    options = tuple((name, repr(value)) for name, value in body.items() if name not in apart)
    given = tuple(body.get(name) is None for name in WORDS)
    return (known.id, known.stamp, options, given, sizes)


def _check_bounds(body: Mapping[str, Any], settings: ServiceSettings) -> None:
    steps = max(body.get("steps") or 0, len(body.get("times") or ())) or DEFAULT_STEPS
    if body.get("jumps"):
        steps *= body["jumps"][1]
    if steps > settings.steps:
        raise RefusedError(400, f"{steps:,} steps are more than the {settings.steps:,} allowed here", "steps")
    if (body.get("count") or 1) > settings.count:
        raise RefusedError(400, f"count is {body['count']:,}, more than the {settings.count:,} allowed here", "count")
    if body.get("size"):
        check_pixels(body["size"], settings)


def check_pixels(size: Sequence[int], settings: ServiceSettings) -> None:
    """Raises RefusedError for an image (H, W) of more pixels than are allowed."""
    if size[0] * size[1] > settings.pixels:
        raise RefusedError(
            400,
            f"size {size[0]}x{size[1]} (height x width) is more than the {settings.pixels:,} pixels allowed here",
            "size",
        )


def _checked(
    task: TaskName,
    body: dict[str, Any],
    known: KnownModel,
    images: Mapping[str, Image.Image],
    settings: ServiceSettings,
) -> tuple[list[int], list[str]]:
    """The seed of each image, and notes. Raises UserError for what does not fit the model."""
    if task == "sample":
        return _check_sample(body, known, settings)
    check_names(SampleRequest(**options_of_body(body, ("sampler", "eta", "grid", "shift", "times"))))
    if task == "interpolate":
        return _check_interpolation(body, known, settings)
    prompt = body["prompt"]
    inputs = ConditionInputs(listed(prompt), listed(body.get("label")), listed(body.get("negative")))
    source = source_of(known.outline)
    check_inputs(source, inputs)
    if task in ("inpaint", "outpaint", "edit") and source.dropout == 0:
        complete_fields(source, 1, inputs, {name: None for name in ("masked_latent", "mask") if name in source.reads})
    _check_image_of_task(task, body, known, images, settings)
    return [body["seed"] + k for k in range(body["count"] or 1)], []


def _check_image_of_task(
    task: TaskName,
    body: Mapping[str, Any],
    known: KnownModel,
    images: Mapping[str, Image.Image],
    settings: ServiceSettings,
) -> None:
    if task == "outpaint":
        left, top, right, bottom = body["extend"]
        image = images["image"]
        check_pixels((image.height + top + bottom, image.width + left + right), settings)
    elif task == "upscale":
        factor = enlargement(known.outline)
        check_pixels((images["image"].height * factor, images["image"].width * factor), settings)
    elif task == "layout":
        for number, one in enumerate(body["boxes"], 1):
            check_box(Box(one["label"], tuple(one["box"])), number)
            category(known.outline, one["label"], number)


def _check_sample(body: dict[str, Any], known: KnownModel, settings: ServiceSettings) -> tuple[list[int], list[str]]:
    options = options_of_body(body)
    if options.pop("autoguide", None) is None:
        options.pop("autoguide_scale", None)
    options.pop("image_guidance", None)
    lengths = [len(value) for name in (*WORDS, "guidance") if isinstance(value := body[name], list)]
    if options["count"] is None and options["seeds"] is None and lengths:
        options["count"] = max(lengths)
    check_pixels(options["size"] or known.config.image_size, settings)
    request = SampleRequest(**{name: body[name] for name in WORDS}, **options)
    if request.decoder == "tiny" and not (known.folder / "tiny_decoder.safetensors").exists():
        raise UserError("this model has no tiny decoder: use the full decoder")
    from dataclasses import replace

    planned = plan(known.outline, replace(request, decoder="full"))
    for name in (*WORDS, "guidance"):
        row_of(body[name], 0)
    return planned.seeds, list(planned.notes)


def _check_interpolation(
    body: dict[str, Any], known: KnownModel, settings: ServiceSettings
) -> tuple[list[int], list[str]]:
    body["seeds"] = list(body["seeds"])
    prompts, labels = listed(body["prompt"]), listed(body["label"])
    stops = stops_of(body["seeds"], prompts, labels)
    check_inputs(source_of(known.outline), ConditionInputs(prompts, labels))
    check_pixels(body["size"] or known.config.image_size, settings)
    count = (len(stops) - 1) * (body["frames"] - 1) + 1
    return [stops[0].seed] * min(count, settings.count + 1), []
