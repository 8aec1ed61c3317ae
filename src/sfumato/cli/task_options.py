"""The options that the commands of the paper's tasks share."""

from pathlib import Path
from typing import Annotated

import typer

OutOption = Annotated[Path, typer.Option("--out", help="The folder for the images; numbering goes on in one in use.")]
PromptArgument = Annotated[str | None, typer.Argument(metavar="[PROMPT]", help="For models conditioned on text.")]
LabelOption = Annotated[str | None, typer.Option("--label", help="A class by name or number, for models of classes.")]
NegativeOption = Annotated[str | None, typer.Option("--negative", help="A text to guide away from.")]
CountOption = Annotated[int, typer.Option("-n", "--count", help="Images, each with a seed of its own.")]
SeedOption = Annotated[int, typer.Option("--seed", help="Of the first image; the next one takes the next number.")]
StepsOption = Annotated[int, typer.Option("--steps", help="Steps of the sampler.")]
SamplerOption = Annotated[str, typer.Option("--sampler", help="`sfumato samplers` lists them.")]
GuidanceOption = Annotated[
    str | None,
    typer.Option(
        "--guidance",
        metavar="SCALE",
        help="How strongly to follow what is given; 1 is off [default: 3 where it can be]. For models trained with "
        "train.part_dropout one for each part, too: text=3,mask=1.5.",
    ),
]
WindowOption = Annotated[
    str,
    typer.Option(
        "--window",
        metavar="PIXELS",
        help="Side of the overlapping windows of large images; 0: as a whole; auto: of the training size, where the "
        "image has more than four times its area.",
    ),
]
OverlapOption = Annotated[float, typer.Option("--overlap", help="Of neighbouring windows, as a share of their side.")]
MemoryOption = Annotated[
    int,
    typer.Option(
        "--memory", metavar="MIB", help="Of feature maps while encoding and decoding; beyond, images go in bands."
    ),
]
OUT = Path("out")
MEMORY = 4096
OVERLAP = 0.25


def parse_guidance(text: str | None) -> float | dict[str, float] | None:
    """A scale, or scales by the name of a part."""
    from sfumato.errors import UserError

    if text is None:
        return None
    names = [part.partition("=")[0].strip() for part in text.split(",")]
    numbers = [part.rpartition("=")[2] for part in text.split(",")]
    try:
        scales = [float(number) for number in numbers]
    except ValueError:
        scales = []
    if "=" not in text and len(scales) == 1:
        return scales[0]
    if not scales or not all(names) or text.count("=") < len(scales) or len(set(names)) < len(names):
        raise UserError(
            f"--guidance {text!r} is neither a number such as 3 nor scales of parts such as text=3,mask=1.5"
        )
    return dict(zip(names, scales, strict=True))


def parse_window(text: str) -> int | None:
    """None for auto, else pixels."""
    from sfumato.errors import UserError

    if text.strip().lower() == "auto":
        return None
    if not text.strip().isdecimal():
        raise UserError(f"--window {text!r} is no number of pixels: give one such as 256, 0 for none, or auto")
    return int(text)


def parse_memory(mebibytes: int) -> int:
    """Bytes."""
    from sfumato.cli.options import at_least

    return at_least("--memory", mebibytes, 1) * 2**20
