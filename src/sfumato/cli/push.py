"""`sfumato push`."""

from dataclasses import dataclass
from pathlib import Path

import typer

from sfumato.cli.flags import REQUIRED, command, flag
from sfumato.cli.machine import AModel

LICENCE = r"[a-z0-9][a-z0-9.-]{0,60}"


@dataclass(frozen=True, kw_only=True)
class PushFlags(AModel):
    """The options of `sfumato push`."""

    name: str = flag(REQUIRED, "output", "The repository.", metavar="OWNER/NAME", argument=True)
    licence: str | None = flag(
        None, "output", "The licence of the weights, by the hub's name, such as apache-2.0 or cc-by-4.0."
    )
    data_licence: str | None = flag(None, "output", "The licence of the training data, in words.")
    card: list[Path] | None = flag(
        None,
        "output",
        "A folder of `sfumato evaluate`; one named `card` beside the run is found automatically.",
        type=list[Path],
        metavar="FOLDER",
    )
    private: bool = flag(False, "output", "Create the repository for yourself only.", names=("--private",))
    message: str = flag("Upload a model of sfumato", "output", "The message of the commit.")
    out: Path | None = flag(None, "output", "Write the files into this folder for inspection, and upload nothing.")


@command(PushFlags)
def push(flags: PushFlags) -> None:
    """Publish a model on the Hugging Face hub.

    Uploads the model with a card: data and licences, sizes, curves, samples, evaluations and limits. Every command then
    takes hub:OWNER/NAME as a model. Needs the extra `hub`, and a token that may write (HF_TOKEN, or `hf auth login`).
    """
    import re
    import tempfile

    from sfumato.errors import UserError
    from sfumato.hub import client, hub_name
    from sfumato.outputs import out_is_free, written
    from sfumato.publishing.card import Words
    from sfumato.publishing.facts import gather
    from sfumato.publishing.upload import push as upload
    from sfumato.publishing.upload import write_repository

    name = hub_name(flags.name)
    if flags.licence is not None and not re.fullmatch(LICENCE, flags.licence):
        raise UserError(f"--licence {flags.licence!r} is not a licence name of the hub: give one such as apache-2.0")
    words = Words(name.repository, flags.licence, flags.data_licence)
    if flags.out is not None:
        out_is_free(flags.out)
        facts = gather(flags.model, flags.card or ())
        with written(flags.out):
            write_repository(facts, words, flags.out)
        typer.echo(f"wrote {flags.out}; nothing was uploaded")
        return
    client()
    facts = gather(flags.model, flags.card or ())
    with tempfile.TemporaryDirectory() as place:
        write_repository(facts, words, Path(place) / "model")
        address = upload(Path(place) / "model", name, flags.private, flags.message)
    typer.echo(f"pushed {facts.model.digest} to {address}: {name} stands for it")
