"""`sfumato inpaint`."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from sfumato.cli.flags import command, like
from sfumato.cli.forms import request_flag, task_flags
from sfumato.cli.task import TaskFlags, canvas_of, read_image, read_values, run, words_of
from sfumato.pipeline.task_options import InpaintOptions

if TYPE_CHECKING:
    from PIL.Image import Image

    from sfumato.model import LatentDiffusion
    from sfumato.pipeline.request import SampleRequest


@dataclass(frozen=True, kw_only=True)
class InpaintFlags(TaskFlags):
    """The options of `sfumato inpaint`."""

    image: Path = like(InpaintOptions, "image", metavar="IMAGE", argument=True)
    mask: Path = like(InpaintOptions, "mask", metavar="MASK", argument=True)
    feather: int = like(InpaintOptions, "feather")
    jumps: tuple[int, int] | None = request_flag("jumps", hint="For models that were not trained to inpaint.")


@command(InpaintFlags, task_flags("prompt", "label", "negative"))
def inpaint(flags: InpaintFlags, options: dict[str, Any]) -> None:
    """Fill the hole of an image. Outside the mask nothing changes, not by one bit.

    Models trained to inpaint are conditioned on the masked image; any other samples around the known region. Size,
    mode, palette and transparency stay. Writes OUT/0000.png ... and OUT/grid.png, and prints the largest change outside
    the mask.
    """
    from sfumato import tasks
    from sfumato.tasks.compositing import largest_change
    from sfumato.tasks.inpainting import check_feather, mask_of

    image, mask = read_image(flags.image, "the image"), read_values(flags.mask, "the mask")
    hole, notes = mask_of(mask, image)
    check_feather(flags.feather, image)
    for note in notes:
        typer.echo(note, err=True)
    settings = {**words_of(options), "feather": flags.feather, "jumps": flags.jumps}

    def make(model: "LatentDiffusion", request: "SampleRequest") -> "list[Image]":
        return tasks.inpaint(model, image, mask, **settings, options=request)

    def check(result: "Image") -> str:
        return f"largest change outside the mask: {largest_change(image, result, hole):g}"

    facts = {"image": flags.image.name, "mask": flags.mask.name, "feather": flags.feather}
    own = {"feather": flags.feather, "jumps": None if flags.jumps is None else list(flags.jumps)}
    canvas = canvas_of(image, jumps=flags.jumps)
    run(flags, options, "inpaint", make, facts, canvas, [image, mask], check, own, ("image", "mask"))
