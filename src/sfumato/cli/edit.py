"""`sfumato edit`."""

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


def edit(
    model: ModelArgument,
    image: Annotated[Path, typer.Argument(metavar="IMAGE", help="An image of any size.")],
    out: OutOption = OUT,
    prompt: PromptArgument = None,
    strength: Annotated[
        float, typer.Option("--strength", help="From 0 (the image as the first stage keeps it) to 1 (forgets it).")
    ] = 0.6,
    style: Annotated[
        Path | None, typer.Option("--style", help="An image whose latent statistics are taken on: its colours.")
    ] = None,
    style_amount: Annotated[float, typer.Option("--style-amount", help="How much of them, 0 to 1.")] = 1.0,
    label: LabelOption = None,
    negative: NegativeOption = None,
    count: CountOption = 1,
    seed: SeedOption = 0,
    steps: StepsOption = 30,
    sampler: SamplerOption = "dpmpp-2m",
    guidance: GuidanceOption = None,
    window: WindowOption = "auto",
    overlap: OverlapOption = OVERLAP,
    memory: MemoryOption = MEMORY,
    device: DeviceOption = "auto",
    precision: PrecisionOption = "auto",
) -> None:
    """Change an image by a prompt, or by colours.

    It is noised as far as --strength says and drawn again; --style gives it the colours of another image.

    Writes OUT/0000.png ... and OUT/grid.png.
    """
    from sfumato import tasks

    given = Given(model, out, count, seed, steps, sampler, guidance, window, overlap, memory, device, precision)
    opened = read_image(image, "the image")
    other = None if style is None else read_image(style, "the style image")

    def make(loaded: "LatentDiffusion", options: "SampleRequest") -> "list[Image]":
        return tasks.edit(
            loaded,
            opened,
            prompt,
            strength=strength,
            style=other,
            style_amount=style_amount,
            label=label,
            negative=negative,
            options=options,
        )

    facts = {"prompt": prompt, "label": label, "negative": negative, "image": image.name, "strength": strength}
    styled = {} if style is None else {"style": style.name, "style_amount": style_amount}
    run(given, "edit", make, {**facts, **styled}, [opened] if other is None else [opened, other])
