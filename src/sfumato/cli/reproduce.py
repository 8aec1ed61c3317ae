"""`sfumato reproduce`."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from sfumato.cli.flags import REQUIRED, command, flag
from sfumato.errors import UserError

if TYPE_CHECKING:
    from PIL.Image import Image


LONGEST_NAME = 200
"""Characters of a model's name that are looked for: a longer one is no folder's."""


@dataclass(frozen=True, kw_only=True)
class ReproduceFlags:
    """The options of `sfumato reproduce`."""

    image: Path = flag(REQUIRED, "what to sample", "A PNG that sfumato made.", metavar="IMAGE", argument=True)
    model: Path | None = flag(
        None,
        "what to sample",
        "The model's folder or run; by default one of the name in the image, here, in runs/, or near the image.",
        metavar="[MODEL]",
        argument=True,
    )
    input: list[str] | None = flag(
        None,
        "what to sample",
        "An image that the request needs, such as image=photo.png or mask=mask.png. May be given several times.",
        type=list[str],
        metavar="NAME=FILE",
    )
    out: Path | None = flag(None, "output", "The folder for the image; by default it is only compared.")


@command(ReproduceFlags)
def reproduce(flags: ReproduceFlags) -> None:
    """Sample the image of a PNG again and compare.

    Exit code 0: the two are bit-identical. Exit code 1: they differ; the output names the possible causes (version,
    device, threads). The model must be the same.
    """
    import numpy as np

    from sfumato.cli.task import check_there
    from sfumato.cli.writing import NumberedImages
    from sfumato.service.reproducing import reproduce as again

    check_there(flags.image, "the image")
    image, settings = _opened(flags.image)
    model = flags.model or _found(flags.image, settings["model"].get("name"))
    made = again(settings, model, _inputs(flags.input or ()))
    if flags.out is not None:
        from sfumato.cli.options import out_folder

        facts = {**settings.get("facts", {}), "reproduced from": flags.image.name}
        path = NumberedImages(out_folder(flags.out)).add(made.image, facts)
        typer.echo(f"written: {path}")
    result = made.image if made.image.mode == image.mode else made.image.convert(image.mode)
    if result.size == image.size and np.array_equal(np.asarray(result), np.asarray(image)):
        typer.echo("equal, bit for bit")
        return
    because = "; ".join(made.differences) or "nothing that is recorded: were the pixels changed after they were made?"
    typer.echo(f"{_difference(result, image)}; different: {because}")
    raise typer.Exit(1)


def _opened(path: Path) -> "tuple[Image, dict[str, Any]]":
    from sfumato.cli.options import refused
    from sfumato.data.reading import open_ids
    from sfumato.provenance import read_settings

    with refused(path, "the image"):
        image = open_ids(path)
    settings, parameters = read_settings(image)
    if settings is None:
        other = "the text of another program" if parameters else "no text of sfumato"
        raise UserError(f"the image {str(path)!r} holds {other}: give a PNG that sfumato has made")
    return image, settings


def _found(image: Path, name: Any) -> Path:
    """The model of a name, in the usual places or in the package."""
    from sfumato.shipped import is_shipped, shipped_models, shipped_name

    if isinstance(name, str) and len(name) > LONGEST_NAME:
        name = f"{name[:LONGEST_NAME]}…"
    if isinstance(name, str) and name and "/" not in name:
        for place in (Path(), Path("runs"), image.parent, *image.resolve().parents[:3]):
            if (place / name).is_dir():
                return place / name
        if is_shipped(name) and shipped_name(name) in shipped_models():
            return Path(name)
    raise UserError(
        f"the image is of the model {name!r}, which is not found here or in runs/: give its folder as MODEL"
    )


def _inputs(texts: "Any") -> "dict[str, Image]":
    from sfumato.cli.task import read_image, read_values
    from sfumato.service.checking import IMAGES

    found = {}
    for text in texts:
        name, equals, path = text.partition("=")
        if not equals or name not in IMAGES:
            raise UserError(f"--input {text!r} is not NAME=FILE with one of {', '.join(IMAGES)}")
        found[name] = (read_values if IMAGES[name] else read_image)(Path(path), f"--input {name}")
    return found


def _difference(a: "Image", b: "Image") -> str:
    import numpy as np

    if a.size != b.size:
        return f"the image is {b.height}x{b.width} (height x width) and now {a.height}x{a.width}"
    gap = np.abs(np.asarray(a.convert("RGB")).astype(int) - np.asarray(b.convert("RGB")).astype(int))
    share = float((gap.max(-1) > 0).mean())
    return f"{share:.1%} of the pixels differ, by {gap.max()} of 255 at most"
