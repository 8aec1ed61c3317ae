"""`sfumato replace-decoder`."""

from dataclasses import dataclass
from pathlib import Path

import typer

from sfumato.cli.flags import REQUIRED, command, flag
from sfumato.cli.machine import AModel, Overwriting


@dataclass(frozen=True, kw_only=True)
class ReplaceDecoderFlags(Overwriting, AModel):
    """The options of `sfumato replace-decoder`."""

    autoencoder: Path = flag(
        REQUIRED,
        "what to sample",
        "A run of stage 1 with train.part=decoder that started from this model.",
        metavar="AUTOENCODER",
        argument=True,
    )
    out: Path = flag(REQUIRED, "output", "The model folder to write.")


@command(ReplaceDecoderFlags)
def replace_decoder(flags: ReplaceDecoderFlags) -> None:
    """Replace a model's decoder with a fine-tuned one.

    The encoder must be bit-identical to the model's: the latents are then the same, and the second stage stays
    unchanged. A tiny decoder is not copied, because it imitates the old decoder.
    """
    from dataclasses import replace

    from sfumato.autoencoder.model import same_latents
    from sfumato.errors import UserError
    from sfumato.model_folder import load
    from sfumato.outputs import out_is_free, written

    place = out_is_free(flags.out, (flags.model, flags.autoencoder), flags.overwrite)
    given, trained = load(flags.model), load(flags.autoencoder)
    if not same_latents(given.autoencoder, trained.autoencoder):
        raise UserError(
            f"{str(flags.autoencoder)!r} makes other latents than the autoencoder of {str(flags.model)!r}: give one "
            f"that was trained by `sfumato train autoencoder CONFIG --start {flags.model} train.part=decoder`"
        )
    about = {name: facts for name, facts in trained.config.about.items() if name == "autoencoder"}
    config = given.config.model_copy(update={"about": given.config.about | about})
    with written(place):
        replace(given, config=config, autoencoder=trained.autoencoder, tiny=None).save(place)
    typer.echo(f"model: {flags.out}" + ("" if given.tiny is None else "; distil its tiny decoder again"))
