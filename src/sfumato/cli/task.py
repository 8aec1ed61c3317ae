"""What the commands of the paper's tasks do alike: open, sample, save, report."""

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

if TYPE_CHECKING:
    from PIL.Image import Image

    from sfumato.model import LatentDiffusion
    from sfumato.pipeline.request import SampleRequest

Make = Callable[["LatentDiffusion", "SampleRequest"], "list[Image]"]
"""A task with everything but the model and how to sample already given."""


@dataclass(frozen=True)
class Given:
    """The common options, as typed."""

    model: Path
    out: Path
    count: int
    seed: int
    steps: int
    sampler: str
    guidance: str | None
    window: str
    overlap: float
    memory: int
    device: str
    precision: str

    def options(self) -> "SampleRequest":
        """Checked. Raises UserError."""
        from sfumato.cli.task_options import parse_guidance, parse_memory, parse_window
        from sfumato.pipeline.choices import check_names
        from sfumato.pipeline.options import check_number
        from sfumato.pipeline.request import SEED
        from sfumato.tasks.requests import task_options

        made = task_options(
            count=self.count,
            seed=self.seed,
            steps=self.steps,
            sampler=self.sampler,
            guidance=parse_guidance(self.guidance),
            window=parse_window(self.window),
            overlap=self.overlap,
            memory=parse_memory(self.memory),
        )
        check_number("the last image's seed", self.seed + self.count - 1, SEED)
        check_names(made)
        return made


@contextmanager
def opened(given: Given) -> "Iterator[LatentDiffusion]":
    """The model, made fast; within the block its calls have the wanted precision, and lack of memory is told."""
    from sfumato.cli.options import chosen_autocast, chosen_device, enough_memory, made_fast
    from sfumato.model_folder import load
    from sfumato.training.workers import use_all_cores

    use_all_cores()
    place = chosen_device(given.device)
    computing = chosen_autocast(place, given.precision)
    loaded = load(given.model, place)
    with made_fast(loaded, computing), enough_memory(1, "a smaller --window or --memory, or --device cpu"):
        yield loaded


def run(
    given: Given,
    task: str,
    make: Make,
    facts: dict[str, Any],
    before: "Sequence[Image]" = (),
    check: "Callable[[Image], str] | None" = None,
) -> None:
    """Makes the images one by one, each on disk before the next begins, and says where they are.

    Args:
        given: the common options.
        task: the command's name.
        make: the task, for one image.
        facts: what is written into every image beside the common options.
        before: what was given, shown before the results on the sheet.
        check: what is said of each finished image.
    """
    from sfumato import __version__
    from sfumato.cli.numbering import next_number, number_of, sheets
    from sfumato.cli.options import notes, out_folder
    from sfumato.cli.progress import counting

    options = given.options()
    folder = out_folder(given.out)
    first = next_number(folder)
    with opened(given) as model:
        about = {
            **{name: value for name, value in facts.items() if value is not None},
            "task": task,
            "sampler": given.sampler,
            "steps": given.steps,
            **(
                {}
                if options.guidance is None
                else {"guidance": given.guidance if isinstance(options.guidance, dict) else options.guidance}
            ),
            "model": model.digest,
            "sfumato": __version__,
        }
        made: list[Image] = []
        written: list[Path] = []
        t_start = time.monotonic()
        with counting(task, given.steps * given.count, "steps") as advance, notes():
            for index in range(given.count):
                one = replace(
                    options,
                    count=1,
                    seed=given.seed + index,
                    callback=lambda step: advance(1, step.total * given.count),
                )
                (image,) = make(model, one)
                if first and not made:
                    typer.echo(f"{folder} already holds images: numbering goes on at {first:04d}", err=True)
                number = number_of(written[-1]) + 1 if written else first
                written.append(save(image, folder, number, {**about, "seed": one.seed}))
                made.append(image)
                if check is not None:
                    typer.echo(f"{written[-1].name}: {check(image)}")
        elapsed = time.monotonic() - t_start
    name = sheet([*before, *made], sheets(folder, number_of(written[0])), about)
    told = written[0].name + (f" to {written[-1].name}" if len(written) > 1 else "")
    plural = "s" if len(made) > 1 else ""
    typer.echo(f"{len(made)} image{plural} in {elapsed:.1f} s: {folder}/{told}; sheet: {name}")


def save(image: "Image", folder: Path, number: int, facts: dict[str, Any]) -> Path:
    """Writes the image in its mode under the first free number: PNG where that has it, else TIFF, without facts."""
    from sfumato.cli.numbering import numbered
    from sfumato.images import PNG_MODES, save_first_free

    suffix = ".png" if image.mode in PNG_MODES else ".tif"
    return save_first_free(numbered(folder, number, suffix), image, facts)


def sheet(images: "Sequence[Image]", paths: Iterator[Path], facts: dict[str, Any]) -> Path:
    """What was given beside what was made, shrunk to cells of one size, under the first free name."""
    from sfumato.data.reading import to_rgb
    from sfumato.images import from_pil, image_grid, save_first_free, thumbnails

    shown = [from_pil(to_rgb(image, (255, 255, 255))) for image in images]
    columns = min(len(shown), 8)
    return save_first_free(paths, image_grid(thumbnails(shown), columns), facts)


def read_image(path: Path, what: str) -> "Image":
    """The image in its own mode with sRGB colours; says what was done to it. Raises UserError naming `what`."""
    from sfumato.cli.options import refused
    from sfumato.data.reading import open_image

    check_there(path, what)
    with refused(path, what):
        opened = open_image(path)
    for note in opened.notes:
        typer.echo(f"{what} {path.name}: {note}", err=True)
    return opened.image


def read_values(path: Path, what: str) -> "Image":
    """A mask or a map as it is stored, without any conversion of colours. Raises UserError naming `what`."""
    from sfumato.cli.options import refused
    from sfumato.data.reading import open_ids

    check_there(path, what)
    with refused(path, what):
        return open_ids(path)


def check_there(path: Path, what: str) -> None:
    """Raises UserError for a path that leads nowhere."""
    from sfumato.errors import UserError

    if not path.exists():
        raise UserError(f"{what} {str(path)!r} does not exist: give the file of an image")
