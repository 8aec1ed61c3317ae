"""`sfumato interpolate`."""

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from sfumato.cli.options import BatchOption, DeviceOption, ModelArgument, PrecisionOption, SizeOption
from sfumato.cli.sampling_options import EtaOption, GridOption, GuidanceOption, SamplerOption, StepsOption

if TYPE_CHECKING:
    from sfumato.tasks.interpolation import Stop

FRAME_MILLISECONDS = 120


def interpolate(
    model: ModelArgument,
    out: Annotated[Path, typer.Option("--out", help="The folder for the frames, strip.png and way.gif.")],
    prompts: Annotated[
        list[str] | None, typer.Argument(metavar="[PROMPT]...", help="Texts to go through, one or one for each seed.")
    ] = None,
    seeds: Annotated[str, typer.Option("--seeds", metavar="A,B[,C...]", help="Seeds to go through.")] = "0,1",
    label: Annotated[
        list[str] | None, typer.Option("--label", help="Classes to go through; may be given several times.")
    ] = None,
    frames: Annotated[int, typer.Option("--frames", help="Images from one stop to the next, both included.")] = 9,
    steps: StepsOption = None,
    sampler: SamplerOption = "auto",
    eta: EtaOption = None,
    grid: GridOption = None,
    guidance: GuidanceOption = None,
    size: SizeOption = None,
    batch: BatchOption = 16,
    device: DeviceOption = "auto",
    precision: PrecisionOption = "auto",
) -> None:
    """Draw the way between seeds, and between prompts.

    One seed with several prompts keeps the noise. Writes OUT/0000.png ..., strip.png and way.gif.
    """
    from sfumato.checkpoint import replacing
    from sfumato.cli import sampling_options as given
    from sfumato.cli.options import (
        at_least,
        chosen_autocast,
        chosen_device,
        enough_memory,
        made_fast,
        notes,
        out_folder,
    )
    from sfumato.cli.options import parse_size as parsed
    from sfumato.cli.progress import counting
    from sfumato.errors import UserError
    from sfumato.images import image_grid, save_png, to_pil, to_uint8
    from sfumato.model_folder import load
    from sfumato.outputs import one_set_of_files
    from sfumato.pipeline.choices import check_names
    from sfumato.pipeline.options import Range, check_number
    from sfumato.pipeline.request import DEFAULT_STEPS, MOST_IMAGES, SampleRequest
    from sfumato.tasks.interpolation import interpolate as between
    from sfumato.training.workers import use_all_cores

    stops = stops_of(seeds, prompts, label)
    at_least("--frames", frames, 2)
    check_number("--frames", frames * (len(stops) - 1), Range(2, MOST_IMAGES, whole=True))
    scale = given.guidance_of(guidance)
    if isinstance(scale, list):
        raise UserError(f"--guidance {guidance!r}: give one number for all frames")
    count = DEFAULT_STEPS if steps is None else steps
    options = SampleRequest(
        steps=count, sampler=sampler, eta=eta, grid=grid, guidance=scale, size=parsed(size), batch=batch
    )
    check_names(options)
    use_all_cores()
    place = chosen_device(device)
    computing = chosen_autocast(place, precision)
    folder = out_folder(out)
    loaded = load(model, place)
    total = (len(stops) - 1) * (frames - 1) + 1
    with counting("drawing", count * -(-total // batch), "steps") as advance:
        options = replace(options, callback=lambda step: advance(1))
        with made_fast(loaded, computing), enough_memory(min(batch, total)), notes():
            images = to_uint8(between(loaded, stops, frames, options)).cpu()
    first, *rest = [to_pil(image) for image in images]
    there_and_back = [*rest, *reversed(rest[:-1])]
    with one_set_of_files(folder), replacing(folder / "way.gif") as temporary:
        for number, image in enumerate(images):
            save_png(folder / f"{number:04d}.png", image)
        save_png(folder / "strip.png", image_grid(images, len(images)))
        first.save(temporary, "GIF", save_all=True, append_images=there_and_back, duration=FRAME_MILLISECONDS, loop=0)
    typer.echo(f"{total} images: {folder}; strip: {folder / 'strip.png'}; moving: {folder / 'way.gif'}")


def stops_of(seeds: str, prompts: list[str] | None, labels: list[str] | None) -> "list[Stop]":
    """One stop for each seed, prompt and label; what is given once holds for all. UserError where they are unlike."""
    from sfumato.errors import UserError
    from sfumato.tasks.interpolation import Stop

    try:
        numbers = [int(seed) for seed in seeds.split(",")]
    except ValueError:
        raise UserError(f"--seeds {seeds!r} is not whole numbers with commas between them, such as 3,7") from None
    count = max(len(numbers), len(prompts or ()), len(labels or ()))
    for name, values in (("seeds", numbers), ("prompts", prompts), ("labels", labels)):
        if values and len(values) not in (1, count):
            raise UserError(f"{len(values)} {name} do not go with {count} stops: give one, or as many")
    if count < 2:
        raise UserError("there is only one stop: give two seeds (--seeds 3,7), prompts or labels at least")
    every = [values * count if values and len(values) == 1 else values for values in (numbers, prompts, labels)]
    return [Stop(*(None if values is None else values[i] for values in every)) for i in range(count)]  # type: ignore[arg-type]
