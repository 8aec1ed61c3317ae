"""`sfumato import`: published checkpoints and diffusers folders -> a model folder."""

from pathlib import Path
from typing import Annotated, Literal

import typer

from sfumato.cli.arguments import MaybePath
from sfumato.cli.options import OverwriteOption
from sfumato.foreign import printable


def import_(
    source: Annotated[Path, typer.Argument(help="A .ckpt or .safetensors file, or a diffusers folder.")],
    out: Annotated[Path, typer.Argument(help="The model folder to write.")],
    config: Annotated[
        Path | None,
        typer.Option("--config", help="The original YAML [default: the one beside the file, else inferred]."),
    ] = None,
    weights: Annotated[
        Literal["ema", "live"] | None,
        typer.Option("--weights", help="Which of an original's two sets the model uses [default: ema where there]."),
    ] = None,
    tokenizer: Annotated[
        str | None,
        typer.Option("--tokenizer", help="Of a text model: a tokenizer.json, a folder, or a hub name."),
        MaybePath(),
    ] = None,
    prediction: Annotated[
        Literal["eps", "v"] | None,
        typer.Option("--prediction", help="Prediction, if the file does not record it."),
    ] = None,
    overwrite: OverwriteOption = False,
) -> None:
    """Open a checkpoint of the original code or diffusers.

    Latent diffusion and Stable Diffusion alike: what comes out is a model folder.
    """
    from sfumato.interop.convert import import_model

    done = import_model(source, out, config, weights, tokenizer, prediction, overwrite)
    for note in done.notes:
        typer.echo(printable(note))
    typer.echo(printable(f"wrote {done.folder}"))
