"""`sfumato semantic-to-image`."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sfumato.cli.flags import command, like
from sfumato.cli.forms import task_flags
from sfumato.cli.task import TaskFlags, canvas_of, read_values, run, words_of
from sfumato.pipeline.task_options import SemanticOptions

if TYPE_CHECKING:
    from PIL.Image import Image

    from sfumato.model import LatentDiffusion
    from sfumato.pipeline.request import SampleRequest


@dataclass(frozen=True, kw_only=True)
class SemanticFlags(TaskFlags):
    """The options of `sfumato semantic-to-image`."""

    map_: Path = like(SemanticOptions, "map", metavar="MAP", argument=True)


@command(SemanticFlags, task_flags("prompt", "negative"))
def semantic_to_image(flags: SemanticFlags, options: dict[str, Any]) -> None:
    """Sample images for a semantic map, of the map's size.

    Writes OUT/0000.png ... and OUT/grid.png.
    """
    from sfumato import tasks

    label_map = read_values(flags.map_, "the map")

    def make(model: "LatentDiffusion", request: "SampleRequest") -> "list[Image]":
        return tasks.paint(model, label_map, **words_of(options), options=request)

    before = [label_map] if label_map.mode in ("P", "RGB", "RGBA") else []
    canvas = canvas_of(label_map, 0)
    run(flags, options, "semantic-to-image", make, {"map": flags.map_.name}, canvas, before, missing=("map",))
