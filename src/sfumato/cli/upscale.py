"""`sfumato upscale`."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sfumato.cli.flags import command, like
from sfumato.cli.forms import task_flags
from sfumato.cli.task import Canvas, TaskFlags, read_image, run, words_of
from sfumato.pipeline.task_options import UpscaleOptions

if TYPE_CHECKING:
    from PIL.Image import Image

    from sfumato.model import LatentDiffusion
    from sfumato.pipeline.request import SampleRequest


@dataclass(frozen=True, kw_only=True)
class UpscaleFlags(TaskFlags):
    """The options of `sfumato upscale`."""

    image: Path = like(UpscaleOptions, "image", metavar="IMAGE", argument=True)
    keep_colours: bool = like(UpscaleOptions, "keep_colours", names=("--keep-colours/--free-colours",))


@command(UpscaleFlags, task_flags("prompt"))
def upscale(flags: UpscaleFlags, options: dict[str, Any]) -> None:
    """Enlarge an image by the model's factor.

    Large images are sampled in overlapping windows without seams. Writes OUT/0000.png ... and OUT/grid.png.
    """
    from sfumato import tasks
    from sfumato.tasks.super_resolution import enlargement

    image = read_image(flags.image, "the image")

    def make(model: "LatentDiffusion", request: "SampleRequest") -> "list[Image]":
        return tasks.upscale(model, image, **words_of(options), keep_colours=flags.keep_colours, options=request)

    def size(model: "LatentDiffusion") -> tuple[int, int]:
        factor = enlargement(model)
        return image.height * factor, image.width * factor

    own = {"keep_colours": flags.keep_colours}
    run(flags, options, "upscale", make, {"image": flags.image.name}, Canvas(size, 0), [image], own=own)
