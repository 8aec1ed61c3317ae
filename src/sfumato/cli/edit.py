"""`sfumato edit`."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sfumato.cli.flags import command, like
from sfumato.cli.forms import task_flags
from sfumato.cli.task import TaskFlags, canvas_of, read_image, run, words_of
from sfumato.pipeline.task_options import EditOptions

if TYPE_CHECKING:
    from PIL.Image import Image

    from sfumato.model import LatentDiffusion
    from sfumato.pipeline.request import SampleRequest


@dataclass(frozen=True, kw_only=True)
class EditFlags(TaskFlags):
    """The options of `sfumato edit`."""

    image: Path = like(EditOptions, "image", metavar="IMAGE", argument=True)
    strength: float = like(
        EditOptions, "strength", help="How far the image is noised: 0 keeps it, 1 starts from pure noise."
    )
    style: Path | None = like(EditOptions, "style")
    style_amount: float = like(EditOptions, "style_amount")


@command(EditFlags, task_flags("prompt", "label", "negative", steps=30))
def edit(flags: EditFlags, options: dict[str, Any]) -> None:
    """Change an image by a prompt, or by colours.

    The image is noised by --strength and sampled again; --style gives it the colours of another image.

    Writes OUT/0000.png ... and OUT/grid.png.
    """
    from sfumato import tasks

    image = read_image(flags.image, "the image")
    style = None if flags.style is None else read_image(flags.style, "the style image")
    settings: dict[str, Any] = {"strength": flags.strength, "style": style, "style_amount": flags.style_amount}

    def make(model: "LatentDiffusion", request: "SampleRequest") -> "list[Image]":
        return tasks.edit(model, image, **words_of(options), **settings, options=request)

    facts = {"image": flags.image.name, "strength": flags.strength}
    if flags.style is not None:
        facts |= {"style": flags.style.name, "style_amount": flags.style_amount}
    own = {"strength": flags.strength, "style_amount": flags.style_amount}
    missing = ("image",) if style is None else ("image", "style")
    canvas = canvas_of(image, strength=flags.strength)
    run(flags, options, "edit", make, facts, canvas, [image] if style is None else [image, style], None, own, missing)
