"""`sfumato quantize`."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import typer

from sfumato.cli.flags import REQUIRED, command, flag
from sfumato.cli.machine import AModel, Overwriting


@dataclass(frozen=True, kw_only=True)
class QuantizeFlags(Overwriting, AModel):
    """The options of `sfumato quantize`."""

    out: Path = flag(REQUIRED, "output", "The model folder to write.")
    bits: Literal[8, 16] = flag(
        8,
        "output",
        "8: int8 with a scale for each row of a matrix or kernel; 16: float16.",
        type=Literal["8", "16"],
        parse=lambda title, typed: int(typed),
        typed_default="8",
    )


@command(QuantizeFlags)
def quantize(flags: QuantizeFlags) -> None:
    """Store a model's weights in 8 or 16 bits.

    The folder is about a quarter or half as large. Weights are expanded to float32 when the model is opened: everything
    works as before and is as fast as before, with slightly rounded weights.
    """
    from sfumato import quantization
    from sfumato.cli.tables import show
    from sfumato.outputs import out_is_free, written

    place = out_is_free(flags.out, (flags.model,), flags.overwrite)
    with written(place):
        made = quantization.quantize(flags.model, place, flags.bits)
    total = tuple(sum(size[i] for size in made.sizes.values()) for i in (0, 1))
    rows = [[name, *(f"{count / 1e6:.2f} MB" for count in size)] for name, size in made.sizes.items()]
    show(["file", "before", "after"], [*rows, ["all weights", *(f"{count / 1e6:.2f} MB" for count in total)]])
    typer.echo(f"largest relative error of a tensor: {made.error:.2%} ({made.worst})")
    typer.echo(f"digest: {made.digests[0]} before, {made.digests[1]} after")
    for what, names in (("copied as they are", made.copied), ("left out", made.left_out)):
        if names:
            typer.echo(f"{what}: {', '.join(names)}")
    typer.echo(f"model: {flags.out}")
