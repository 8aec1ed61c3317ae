"""`sfumato upscale`."""

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
    MemoryOption,
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


def upscale(
    model: ModelArgument,
    image: Annotated[Path, typer.Argument(metavar="IMAGE", help="A small image, of any size.")],
    out: OutOption = OUT,
    prompt: PromptArgument = None,
    keep_colours: Annotated[
        bool, typer.Option("--keep-colours/--free-colours", help="Take off slow drift against the small image.")
    ] = True,
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
    """Enlarge an image by the model's factor.

    Large images are drawn in overlapping windows without seams. Writes OUT/0000.png ... and OUT/grid.png.
    """
    from sfumato import tasks

    given = Given(model, out, count, seed, steps, sampler, guidance, window, overlap, memory, device, precision)
    opened = read_image(image, "the image")

    def make(loaded: "LatentDiffusion", options: "SampleRequest") -> "list[Image]":
        return tasks.upscale(loaded, opened, prompt, keep_colours=keep_colours, options=options)

    run(given, "upscale", make, {"prompt": prompt, "image": image.name}, [opened])
