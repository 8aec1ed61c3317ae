"""`sfumato export`: a model folder -> an original checkpoint, a diffusers folder, or ONNX graphs."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import typer

from sfumato.cli.flags import REQUIRED, command, flag
from sfumato.cli.machine import AModel, Overwriting


@dataclass(frozen=True, kw_only=True)
class ExportFlags(Overwriting, AModel):
    """The options of `sfumato export`."""

    out: Path = flag(
        REQUIRED,
        "output",
        "A folder; for the original format also a .ckpt or .safetensors file.",
        metavar="OUT",
        argument=True,
    )
    format: Literal["original", "diffusers", "onnx"] = flag(REQUIRED, "output", "The program that will read it.")


@command(ExportFlags)
def export(flags: ExportFlags) -> None:
    """Convert a model for other programs.

    For the original code, diffusers, or onnxruntime. The written files are read back and compared before they are put
    in place. A model that the format cannot express is refused, with the reason.
    """
    from sfumato.interop.convert import export_model

    for note in export_model(flags.model, flags.out, flags.format, flags.overwrite):
        typer.echo(note)
    typer.echo(f"wrote {flags.out}")
