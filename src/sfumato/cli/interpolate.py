"""`sfumato interpolate`."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from sfumato.cli.flags import REQUIRED, command, flag, like
from sfumato.cli.forms import request_flags, seeds_of
from sfumato.cli.machine import ModelFlags
from sfumato.cli.sample_codes import one_scale
from sfumato.counts import how_many
from sfumato.pipeline.options import Range, check_number
from sfumato.pipeline.request import DEFAULT_STEPS, MOST_IMAGES
from sfumato.pipeline.task_options import InterpolateOptions

if TYPE_CHECKING:
    from torch import Tensor

    from sfumato.pipeline.record import SampleRecord

FRAME_MILLISECONDS = 120
SHARED = request_flags(
    "prompt",
    "label",
    "steps",
    "sampler",
    "eta",
    "grid",
    "shift",
    "times",
    "guidance",
    "interval",
    "rescale",
    "projection",
    "size",
    "batch",
)


@dataclass(frozen=True, kw_only=True)
class InterpolateFlags(ModelFlags):
    """The options of `sfumato interpolate` beside those of a request."""

    out: Path = flag(
        REQUIRED, "output", "The folder for frames, strip and animation; in one that is in use, numbering continues."
    )
    seeds: Sequence[int] = like(
        InterpolateOptions, "seeds", metavar="A,B[,C...]", type=str, parse=seeds_of, typed_default="0,1"
    )
    frames: int = like(InterpolateOptions, "frames")


@command(InterpolateFlags, SHARED)
def interpolate(flags: InterpolateFlags, options: dict[str, Any]) -> None:
    """Interpolate between seeds and between prompts.

    One seed with several prompts keeps the noise. Writes OUT/0000.png ..., strip.png and interpolation.gif.
    """
    from sfumato.cli.cost import say_cost
    from sfumato.cli.options import chosen_autocast, chosen_device, enough_memory, made_fast, notes, out_folder
    from sfumato.cli.progress import counting
    from sfumato.cli.writing import model_name
    from sfumato.estimate.images import sampling as cost_of
    from sfumato.images import to_uint8
    from sfumato.model_folder import load
    from sfumato.pipeline.choices import check_names
    from sfumato.pipeline.request import SampleRequest
    from sfumato.provenance import computed_by, sampling_body
    from sfumato.tasks.interpolation import interpolate as between
    from sfumato.tasks.interpolation import stops_of
    from sfumato.training.workers import use_all_cores

    stops = stops_of(flags.seeds, options["prompt"], options["label"])
    check_number("--frames", flags.frames * (len(stops) - 1), Range(2, MOST_IMAGES, whole=True))
    one_scale("--guidance", options["guidance"])
    steps = options["steps"] or len(options["times"] or ()) or DEFAULT_STEPS
    sampling = {name: value for name, value in options.items() if name not in ("prompt", "label")}
    check_names(SampleRequest(**sampling))
    use_all_cores()
    device = chosen_device(flags.device)
    computing = chosen_autocast(device, flags.precision)
    folder = out_folder(flags.out)
    model = load(flags.model, device)
    total = (len(stops) - 1) * (flags.frames - 1) + 1
    batch = options["batch"]
    size = options["size"] or model.config.image_size
    work = cost_of(model, SampleRequest(**sampling), size, total)
    say_cost(work, device, computing, "give a smaller --size, fewer --steps or fewer --frames")
    records: list[SampleRecord] = []
    with counting("sampling", steps * -(-total // batch), "steps") as advance:
        request = SampleRequest(**sampling, callback=lambda step: advance(1), on_record=records.append)
        with made_fast(model, computing), enough_memory(min(batch, total)), notes():
            images = to_uint8(between(model, stops, flags.frames, request)).cpu()
    words = {name: options[name] for name in ("prompt", "label") if options[name]}
    body = {"task": "interpolate", **words, "seeds": list(flags.seeds), "frames": flags.frames}
    body |= {**sampling_body(records[0], 0, request), "size": list(records[0].size)}
    name = model_name(flags.model)
    hows = [
        {
            "request": body,
            "name": name,
            "index": k,
            "computed": computed_by(model, min(batch, total - k // batch * batch)),
        }
        for k in range(total)
    ]
    facts = {**records[0].shared(), "task": "interpolate", "seeds": ",".join(map(str, flags.seeds))}
    for name in ("prompt", "label"):
        if options[name]:
            facts[f"{name}s"] = "; ".join(options[name])
    write(folder, images, facts, hows)


def write(folder: Path, images: "Tensor", facts: dict[str, Any], hows: list[dict[str, Any]]) -> None:
    """Writes frames (M, 3, H, W), uint8, under the first free numbers; their strip; and forth and back as a GIF.

    hows: what makes each frame again.
    """
    from sfumato.checkpoint import write_first_free
    from sfumato.cli.writing import NumberedImages, sheet_of
    from sfumato.images import to_pil

    numbered = NumberedImages(folder)
    for index, image in enumerate(images):
        numbered.add(image, {**facts, "frame": f"{index + 1} of {len(images)}"}, **hows[index])
    strip = numbered.add_strip(sheet_of(images, len(images)), facts)
    first, *rest = [to_pil(image) for image in images]
    back = list(reversed(rest[:-1]))

    def animate(path: Path) -> None:
        first.save(path, "GIF", save_all=True, append_images=[*rest, *back], duration=FRAME_MILLISECONDS, loop=0)

    animation = write_first_free(numbered.beside("interpolation", ".gif"), animate)
    typer.echo(f"{how_many(len(images), 'image')}: {folder}/{numbered.names}; strip: {strip}; animation: {animation}")
