"""`sfumato export`: a model folder -> an original checkpoint or a diffusers folder."""

from pathlib import Path
from typing import Annotated, Literal

import typer

from sfumato.cli.options import OverwriteOption


def export(
    model: Annotated[Path, typer.Argument(help="A model folder, or the folder of a run.")],
    out: Annotated[Path, typer.Argument(help="A folder; for the original format also a .ckpt or .safetensors file.")],
    format: Annotated[Literal["original", "diffusers"], typer.Option("--format", help="Who shall read it.")],
    overwrite: OverwriteOption = False,
) -> None:
    """Write a model for the original code or diffusers.

    What was written is read back and compared before it takes its place; what a format cannot say is refused by name.
    """
    from sfumato.interop.convert import export_model

    for note in export_model(model, out, format, overwrite):
        typer.echo(note)
    typer.echo(f"wrote {out}")
