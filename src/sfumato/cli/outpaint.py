"""`sfumato outpaint`."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sfumato.cli.flags import command, like
from sfumato.cli.forms import request_flag, task_flags
from sfumato.cli.task import TaskFlags, canvas_of, read_image, run, words_of
from sfumato.errors import UserError
from sfumato.pipeline.task_options import OutpaintOptions

if TYPE_CHECKING:
    from PIL.Image import Image

    from sfumato.model import LatentDiffusion
    from sfumato.pipeline.request import SampleRequest


def sides_of(flag: str, text: str) -> tuple[int, int, int, int]:
    """(left, top, right, bottom) of "128,0,128,0"."""
    parts = [part.strip() for part in text.split(",")]
    if len(parts) != 4 or not all(part.isdecimal() for part in parts):
        raise UserError(f"{flag} {text!r} is not LEFT,TOP,RIGHT,BOTTOM in pixels, such as 128,0,128,0")
    left, top, right, bottom = (int(part) for part in parts)
    return left, top, right, bottom


@dataclass(frozen=True, kw_only=True)
class OutpaintFlags(TaskFlags):
    """The options of `sfumato outpaint`."""

    image: Path = like(OutpaintOptions, "image", metavar="IMAGE", argument=True)
    extend: tuple[int, int, int, int] = like(
        OutpaintOptions, "extend", metavar="LEFT,TOP,RIGHT,BOTTOM", type=str, parse=sides_of
    )
    jumps: tuple[int, int] | None = request_flag("jumps", hint="For models that were not trained to inpaint.")


@command(OutpaintFlags, task_flags("prompt", "label", "negative"))
def outpaint(flags: OutpaintFlags, options: dict[str, Any]) -> None:
    """Extend an image beyond its borders. Its own pixels stay as they are.

    Writes OUT/0000.png ... and OUT/grid.png, and prints the largest change of the image's own pixels.
    """
    from sfumato import tasks
    from sfumato.tasks.compositing import largest_change
    from sfumato.tasks.outpainting import Extent, extended

    image, extent = read_image(flags.image, "the image"), Extent(*flags.extend)
    canvas, new = extended(image, extent)

    def make(model: "LatentDiffusion", request: "SampleRequest") -> "list[Image]":
        return tasks.outpaint(model, image, extent, **words_of(options), jumps=flags.jumps, options=request)

    def check(result: "Image") -> str:
        return f"largest change of the image's own pixels: {largest_change(canvas, result, new):g}"

    facts = {"image": flags.image.name, "extend": ",".join(map(str, flags.extend))}
    own = {"extend": list(flags.extend), "jumps": None if flags.jumps is None else list(flags.jumps)}
    run(flags, options, "outpaint", make, facts, canvas_of(canvas, jumps=flags.jumps), [image], check, own)
