"""`sfumato semantic-to-image`."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from sfumato.cli.options import DeviceOption, ModelArgument, PrecisionOption
from sfumato.cli.task import Given, read_values, run
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


def semantic_to_image(
    model: ModelArgument,
    map_: Annotated[Path, typer.Argument(metavar="MAP", help="An image of class ids, or of the classes' colours.")],
    out: OutOption = OUT,
    prompt: PromptArgument = None,
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
    """Paint images of a label map, of the map's size.

    Writes OUT/0000.png ... and OUT/grid.png.
    """
    from sfumato import tasks

    given = Given(model, out, count, seed, steps, sampler, guidance, window, overlap, memory, device, precision)
    drawn = read_values(map_, "the map")

    def make(loaded: "LatentDiffusion", options: "SampleRequest") -> "list[Image]":
        return tasks.paint(loaded, drawn, prompt, negative=negative, options=options)

    facts = {"prompt": prompt, "negative": negative, "map": map_.name}
    run(given, "paint", make, facts, [drawn] if drawn.mode in ("P", "RGB", "RGBA") else [])
