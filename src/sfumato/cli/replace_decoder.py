"""`sfumato replace-decoder`."""

from pathlib import Path
from typing import Annotated

import typer

from sfumato.cli.options import ModelArgument, OverwriteOption


def replace_decoder(
    model: ModelArgument,
    autoencoder: Annotated[
        Path,
        typer.Argument(metavar="AUTOENCODER", help="A run of stage 1 with train.part=decoder, begun at the model's."),
    ],
    out: Annotated[Path, typer.Option("--out", help="The model folder to write.")],
    overwrite: OverwriteOption = False,
) -> None:
    """Replace a model's decoder with a fine-tuned one.

    The encoder must be the model's own, bit for bit: then its latents mean the same, and the second stage stays as it
    is. A tiny decoder is left out, for it imitates the one before.
    """
    from dataclasses import replace

    from sfumato.autoencoder.model import same_latents
    from sfumato.errors import UserError
    from sfumato.model_folder import load
    from sfumato.outputs import out_is_free, written

    place = out_is_free(out, (model, autoencoder), overwrite)
    given, trained = load(model), load(autoencoder)
    if not same_latents(given.autoencoder, trained.autoencoder):
        raise UserError(
            f"{str(autoencoder)!r} makes other latents than the autoencoder of {str(model)!r}: give one that was "
            f"trained by `sfumato train autoencoder CONFIG --start {model} train.part=decoder`"
        )
    about = {name: facts for name, facts in trained.config.about.items() if name == "autoencoder"}
    config = given.config.model_copy(update={"about": given.config.about | about})
    with written(place):
        replace(given, config=config, autoencoder=trained.autoencoder, tiny=None).save(place)
    typer.echo(f"model: {out}" + ("" if given.tiny is None else "; distil its tiny decoder anew"))
