"""`sfumato outpaint`."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from sfumato.cli.options import DeviceOption, ModelArgument, PrecisionOption
from sfumato.cli.task import Given, read_image, run
from sfumato.cli.task_options import (
    MEMORY,
    OUT,
    OVERLAP,
    CountOption,
    GuidanceOption,
    LabelOption,
    MemoryOption,
    NegativeOption,
    OutOption,
    OverlapOption,
    PromptArgument,
    SamplerOption,
    SeedOption,
    StepsOption,
    WindowOption,
)

if TYPE_CHECKING:
    from PIL.Image import Image

    from sfumato.model import LatentDiffusion
    from sfumato.pipeline.request import SampleRequest
    from sfumato.tasks.outpainting import Extent


def outpaint(
    model: ModelArgument,
    image: Annotated[Path, typer.Argument(metavar="IMAGE", help="An image of any size and mode.")],
    extend: Annotated[
        str,
        typer.Option("--extend", metavar="LEFT,TOP,RIGHT,BOTTOM", help="Pixels to add on each side, as 128,0,128,0."),
    ],
    out: OutOption = OUT,
    prompt: PromptArgument = None,
    label: LabelOption = None,
    negative: NegativeOption = None,
    jumps: Annotated[
        str | None,
        typer.Option("--jumps", metavar="LENGTH,REPEATS", help="RePaint's resampling, for models of another task."),
    ] = None,
    count: CountOption = 1,
    seed: SeedOption = 0,
    steps: StepsOption = 20,
    sampler: SamplerOption = "dpmpp-2m",
    guidance: GuidanceOption = None,
    window: WindowOption = "auto",
    overlap: OverlapOption = OVERLAP,
    memory: MemoryOption = MEMORY,
    device: DeviceOption = "auto",
    precision: PrecisionOption = "auto",
) -> None:
    """Draw an image on beyond its borders. Its own pixels stay as they are.

    Writes OUT/0000.png ... and OUT/grid.png, and tells the largest change of the image's own pixels.
    """
    from sfumato import tasks
    from sfumato.cli.inpaint import parse_jumps
    from sfumato.tasks.compositing import largest_change
    from sfumato.tasks.outpainting import extended

    given = Given(model, out, count, seed, steps, sampler, guidance, window, overlap, memory, device, precision)
    opened = read_image(image, "the image")
    sides, resampling = _sides(extend), parse_jumps(jumps)
    canvas, new = extended(opened, sides)

    def make(loaded: "LatentDiffusion", options: "SampleRequest") -> "list[Image]":
        return tasks.outpaint(
            loaded, opened, sides, prompt, label=label, negative=negative, jumps=resampling, options=options
        )

    def check(result: "Image") -> str:
        return f"largest change of the image's own pixels: {largest_change(canvas, result, new):g}"

    facts = {"prompt": prompt, "label": label, "negative": negative, "image": image.name, "extend": extend}
    run(given, "outpaint", make, {**facts, "jumps": jumps}, [opened], check)


def _sides(text: str) -> "Extent":
    from sfumato.errors import UserError
    from sfumato.tasks.outpainting import Extent

    found = [part.strip() for part in text.split(",")]
    if len(found) != 4 or not all(part.isdecimal() for part in found):
        raise UserError(f"--extend {text!r} is not LEFT,TOP,RIGHT,BOTTOM in pixels, such as 128,0,128,0")
    return Extent(*(int(part) for part in found))
