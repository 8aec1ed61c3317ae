"""`sfumato layout-to-image`."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sfumato.cli.flags import REQUIRED, command, flag
from sfumato.cli.forms import request_flag, task_flags
from sfumato.cli.task import Canvas, TaskFlags, run, words_of

if TYPE_CHECKING:
    from PIL.Image import Image

    from sfumato.model import LatentDiffusion
    from sfumato.pipeline.request import SampleRequest


@dataclass(frozen=True, kw_only=True)
class LayoutFlags(TaskFlags):
    """The options of `sfumato layout-to-image`."""

    boxes: Path = flag(
        REQUIRED,
        "what to sample",
        'JSON: [{"label": "dog", "box": [x, y, width, height]}, ...].',
        metavar="BOXES",
        argument=True,
    )
    size: tuple[int, int] | None = request_flag("size")


@command(LayoutFlags, task_flags("prompt", "negative"))
def layout_to_image(flags: LayoutFlags, options: dict[str, Any]) -> None:
    """Sample images of objects in boxes.

    Boxes are fractions of the image; the page on layouts describes pixels and COCO files. The size is --size, else the
    file's width and height, else the training size. Writes OUT/0000.png ... and OUT/grid.png.
    """
    from sfumato import tasks
    from sfumato.pipeline.memory import check_memory
    from sfumato.pipeline.options import check_number
    from sfumato.pipeline.request import SIDE
    from sfumato.tasks.layout import read_layout

    layout = read_layout(flags.boxes)
    size = flags.size or layout.size
    if size is not None:
        check_number("size", size, SIDE)
        check_memory(size, 1)

    def make(model: "LatentDiffusion", request: "SampleRequest") -> "list[Image]":
        return tasks.compose(model, layout.boxes, **words_of(options), size=size, options=request)

    canvas = Canvas(lambda model: size or model.config.image_size, 0, advice="give a smaller --size, or fewer --steps")
    boxes = [{"label": one.label, "box": list(one.box)} for one in layout.boxes]
    own = {"boxes": boxes, "size": None if size is None else list(size)}
    run(flags, options, "layout-to-image", make, {"boxes": flags.boxes.name}, canvas, own=own, missing=())
