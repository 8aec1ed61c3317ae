"""The command line: one small file a command; heavy imports happen inside the commands."""

import sys
from typing import Annotated

import typer

from sfumato import __version__
from sfumato.cli import train
from sfumato.errors import UserError

app = typer.Typer(
    name="sfumato",
    help="Latent diffusion models you can train from a folder of images.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
app.add_typer(train.app, name="train", help="Train one of the two stages.")


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"sfumato {__version__}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    pass


def main() -> None:
    """Runs the command line; a mistake of the user is one sentence on stderr and exit code 2."""
    try:
        app()
    except UserError as error:
        typer.echo(f"sfumato: {error}", err=True)
        sys.exit(2)
