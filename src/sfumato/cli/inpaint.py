"""`sfumato inpaint`."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from sfumato.cli.options import DeviceOption, ModelArgument, PrecisionOption
from sfumato.cli.task import Given, read_image, read_values, run
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


def inpaint(
    model: ModelArgument,
    image: Annotated[Path, typer.Argument(metavar="IMAGE", help="An image of any size and mode.")],
    mask: Annotated[Path, typer.Argument(metavar="MASK", help="An image of the same size; white is the hole.")],
    out: OutOption = OUT,
    prompt: PromptArgument = None,
    label: LabelOption = None,
    negative: NegativeOption = None,
    feather: Annotated[
        int, typer.Option("--feather", help="Pixels, from the hole's edge inwards, that blend old and new.")
    ] = 2,
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
    """Fill the hole of an image. Outside the mask nothing changes, not by one bit.

    Models trained to inpaint are asked for the hole; any other draws around what is kept. Size, mode, palette and
    transparency stay. Writes OUT/0000.png ... and OUT/grid.png, and tells the largest change outside the mask.
    """
    from sfumato import tasks
    from sfumato.tasks.compositing import largest_change
    from sfumato.tasks.inpainting import check_feather, mask_of

    given = Given(model, out, count, seed, steps, sampler, guidance, window, overlap, memory, device, precision)
    opened, shown = read_image(image, "the image"), read_values(mask, "the mask")
    hole, notes = mask_of(shown, opened)
    check_feather(feather, opened)
    for note in notes:
        typer.echo(note, err=True)
    resampling = parse_jumps(jumps)

    def make(loaded: "LatentDiffusion", options: "SampleRequest") -> "list[Image]":
        return tasks.inpaint(
            loaded,
            opened,
            shown,
            prompt,
            label=label,
            negative=negative,
            feather=feather,
            jumps=resampling,
            options=options,
        )

    def check(result: "Image") -> str:
        return f"largest change outside the mask: {largest_change(opened, result, hole):g}"

    facts = {"prompt": prompt, "label": label, "negative": negative, "image": image.name, "feather": feather}
    run(given, "inpaint", make, {**facts, "jumps": jumps}, [opened, shown], check)


def parse_jumps(text: str | None) -> tuple[int, int] | None:
    """(length, repeats) of "5,3"."""
    from sfumato.errors import UserError
    from sfumato.pipeline.request import SampleRequest

    if text is None:
        return None
    found = [part.strip() for part in text.split(",")]
    if len(found) != 2 or not all(part.isdecimal() and int(part) > 0 for part in found):
        raise UserError(f"--jumps {text!r} is not LENGTH,REPEATS, two numbers from 1 on, such as 5,3")
    jumps = (int(found[0]), int(found[1]))
    SampleRequest(jumps=jumps)  # checks their range
    return jumps
