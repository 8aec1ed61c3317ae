"""Shared by the commands of the paper's tasks: open the model, sample, save, report."""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from sfumato.cli.flags import flag
from sfumato.cli.machine import Machine, ModelFlags
from sfumato.counts import how_many

if TYPE_CHECKING:
    import torch
    from PIL.Image import Image
    from torch import Tensor

    from sfumato.model import LatentDiffusion
    from sfumato.pipeline.record import SampleRecord
    from sfumato.pipeline.request import SampleRequest

Make = Callable[["LatentDiffusion", "SampleRequest"], "list[Image]"]
"""A task with everything but the model and the sampling options already given."""
NAMES = {"semantic-to-image": "semantic", "layout-to-image": "layout"}
"""Tasks whose names in the service are shorter than those of their commands."""
WORDS = ("prompt", "label", "negative")
"""Options that are given to the task itself."""


@dataclass(frozen=True, kw_only=True)
class TaskFlags(ModelFlags):
    """The options of every task beside those of a request."""

    out: Path = flag(Path("out"), "output", "The folder for the images; in one that is in use, numbering continues.")


def words_of(options: Mapping[str, Any]) -> dict[str, Any]:
    """Prompt, label and negative prompt, as far as the task has them."""
    return {name: options[name] for name in WORDS if name in options}


def sampling_of(options: Mapping[str, Any]) -> "SampleRequest":
    """The sampling options of a task, checked. Raises UserError."""
    from sfumato.pipeline.choices import check_names
    from sfumato.pipeline.options import check_number
    from sfumato.pipeline.request import SEED
    from sfumato.tasks.requests import task_options

    request = task_options(**{name: value for name, value in options.items() if name not in WORDS})
    check_number("the last image's seed", request.seed + (request.count or 1) - 1, SEED)
    check_names(request)
    return request


@dataclass(frozen=True)
class Canvas:
    """The canvas of a task's images, for their cost.

    Attributes:
        size: (H, W) for a model.
        encodes: images of this size that are encoded for each result.
        strength: share of the steps that are sampled.
        jumps: (length, repeats) of resampling.
        advice: how to make it smaller.
    """

    size: "Callable[[LatentDiffusion], tuple[int, int]]"
    encodes: int = 1
    strength: float = 1.0
    jumps: tuple[int, int] | None = None
    advice: str = "give a smaller image, or fewer --steps"


def canvas_of(image: "Image", encodes: int = 1, strength: float = 1.0, jumps: tuple[int, int] | None = None) -> Canvas:
    """A canvas of the image's size."""
    return Canvas(lambda model: (image.height, image.width), encodes, strength, jumps)


def say_cost_of(
    model: "LatentDiffusion",
    device: "torch.device",
    computing: "torch.autocast",
    request: "SampleRequest",
    canvas: Canvas,
    count: int,
) -> None:
    """Reports the cost of `count` images on the canvas, if it is high. Raises UserError if a step would take hours."""
    from sfumato.cli.cost import say_cost
    from sfumato.estimate.images import sampling

    whole = replace(request, strength=canvas.strength, jumps=canvas.jumps)
    work = sampling(model, whole, canvas.size(model), count, canvas.encodes * count)
    say_cost(work, device, computing, canvas.advice)


@contextmanager
def opened(
    model: Path, machine: Machine, before: "Callable[[LatentDiffusion, torch.device, torch.autocast], None]"
) -> "Iterator[LatentDiffusion]":
    """The model, packed; within the block its calls have the precision that is asked for.

    before: called with the model before it is packed, its device and its precision. A lack of memory is UserError.
    """
    from sfumato.cli.options import chosen_autocast, chosen_device, enough_memory, made_fast
    from sfumato.model_folder import load
    from sfumato.training.workers import use_all_cores

    use_all_cores()
    device = chosen_device(machine.device)
    computing = chosen_autocast(device, machine.precision)
    loaded = load(model, device)
    before(loaded, device, computing)
    with made_fast(loaded, computing), enough_memory(1, "a smaller --window or --memory, or --device cpu"):
        yield loaded


def run(
    flags: TaskFlags,
    options: Mapping[str, Any],
    task: str,
    make: Make,
    facts: Mapping[str, Any],
    canvas: Canvas,
    before: "Sequence[Image]" = (),
    check: "Callable[[Image], str] | None" = None,
    own: Mapping[str, Any] | None = None,
    missing: tuple[str, ...] = ("image",),
) -> None:
    """Makes the images one by one, each on disk before the next begins, and prints where they are.

    Args:
        flags: the model, the folder and the device.
        options: the parsed options of the request.
        task: the command's name.
        make: the task, for one image.
        facts: what is written into every image beside the pipeline's record; None is left out.
        canvas: what the images are computed on.
        before: the user's images, shown before the results on the sheet.
        check: makes a line about each finished image.
        own: options of the task beside those of a request, as the service's request has them.
        missing: names of the images that the request needs, which are not inside the results.
    """
    from sfumato.cli.options import notes, out_folder
    from sfumato.cli.progress import counting
    from sfumato.cli.writing import NumberedImages, model_name
    from sfumato.provenance import computed_by, sampling_body

    given = {"task": NAMES.get(task, task), **words_of(options), **(own or {})}
    request = sampling_of(options)
    count, steps = request.count or 1, request.steps or 1
    images = NumberedImages(out_folder(flags.out))
    # the loop's own number of steps follows from what is typed, strength and jumps
    facts = {**{name: value for name, value in facts.items() if value is not None}, "task": task, "steps": steps}
    made: list[Image] = []
    records: list[SampleRecord] = []
    t_start = time.monotonic()

    cost = partial(say_cost_of, request=request, canvas=canvas, count=count)
    with opened(flags.model, flags, cost) as model, counting(task, steps * count, "steps") as advance, notes():
        for index in range(count):
            one = _one_of(request, index, advance, records)
            (image,) = make(model, one)
            body = {**given, **sampling_body(records[-1], 0, request), "steps": steps, "seed": one.seed}
            how = {"computed": computed_by(model, 1), "name": model_name(flags.model), "missing": missing}
            path = images.add(image, {**records[-1].of(0), **facts}, request=body, **how)
            made.append(image)
            if check is not None:
                typer.echo(f"{path.name}: {check(image)}")
    elapsed = time.monotonic() - t_start
    sheet = images.add_sheet(thumbnail_sheet([*before, *made]), {**records[0].shared(), **facts})
    typer.echo(f"{how_many(count, 'image')} in {elapsed:.1f} s: {images.folder}/{images.names}; sheet: {sheet}")


def _one_of(
    request: "SampleRequest", index: int, advance: Callable[[int, int], None], records: "list[SampleRecord]"
) -> "SampleRequest":
    """The request of one of its images alone, which advances the progress of all and adds its record to the others."""
    count = request.count or 1
    return replace(
        request,
        count=1,
        seed=request.seed + index,
        callback=lambda step: advance(1, step.total * count),
        on_record=records.append,
    )


def thumbnail_sheet(images: "Sequence[Image]") -> "Tensor":
    """The user's images beside the results, shrunk to cells of one size."""
    from sfumato.data.reading import to_rgb
    from sfumato.images import from_pil, image_grid, thumbnails

    cells = [from_pil(to_rgb(image, (255, 255, 255))) for image in images]
    return image_grid(thumbnails(cells), min(len(cells), 8))


def read_image(path: Path, what: str) -> "Image":
    """The image in its own mode with sRGB colours; prints what was done to it. Raises UserError naming `what`."""
    from sfumato.cli.options import refused
    from sfumato.data.reading import open_image

    check_there(path, what)
    with refused(path, what):
        opened = open_image(path)
    for note in opened.notes:
        typer.echo(f"{what} {path.name}: {note}", err=True)
    return opened.image


def read_values(path: Path, what: str) -> "Image":
    """A mask or a map as it is stored, without any conversion of colours. Raises UserError naming `what`."""
    from sfumato.cli.options import refused
    from sfumato.data.reading import open_ids

    check_there(path, what)
    with refused(path, what):
        return open_ids(path)


def check_there(path: Path, what: str) -> None:
    """Raises UserError for a path that leads nowhere."""
    from sfumato.errors import UserError

    if not path.exists():
        raise UserError(f"{what} {str(path)!r} does not exist: give the file of an image")
