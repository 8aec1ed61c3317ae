"""`sfumato layout-to-image`."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from sfumato.cli.options import DeviceOption, ModelArgument, PrecisionOption, SizeOption
from sfumato.cli.task import Given, run
from sfumato.cli.task_options import (
    MEMORY,
    OUT,
    OVERLAP,
    CountOption,
    GuidanceOption,
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


def layout_to_image(
    model: ModelArgument,
    boxes: Annotated[
        Path, typer.Argument(metavar="BOXES", help='JSON: [{"label": "dog", "box": [x, y, width, height]}, ...].')
    ],
    out: OutOption = OUT,
    prompt: PromptArgument = None,
    size: SizeOption = None,
    negative: NegativeOption = None,
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
    """Compose images of objects in boxes.

    Boxes are fractions of the image; see the page on composing for pixels and COCO files. The size is --size, else
    the file's width and height, else the training size. Writes OUT/0000.png ... and OUT/grid.png.
    """
    from sfumato import tasks
    from sfumato.cli.options import parse_size
    from sfumato.pipeline.memory import check_memory
    from sfumato.pipeline.options import check_number
    from sfumato.pipeline.request import SIDE
    from sfumato.tasks.layout import read_layout

    given = Given(model, out, count, seed, steps, sampler, guidance, window, overlap, memory, device, precision)
    layout = read_layout(boxes)
    frame = parse_size(size) or layout.size
    if frame is not None:
        check_number("size", frame, SIDE)
        check_memory(frame, 1)

    def make(loaded: "LatentDiffusion", options: "SampleRequest") -> "list[Image]":
        return tasks.compose(loaded, layout.boxes, prompt, size=frame, negative=negative, options=options)

    run(given, "compose", make, {"prompt": prompt, "negative": negative, "boxes": boxes.name})
