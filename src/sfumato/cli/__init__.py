"""The command line: one small file a command; heavy imports happen inside the commands."""

import sys
from collections.abc import Sequence
from typing import Annotated

import typer

from sfumato import __version__
from sfumato.cli import study, train
from sfumato.cli.arguments import Command, check_texts
from sfumato.cli.average import average
from sfumato.cli.bench import bench
from sfumato.cli.compare import compare
from sfumato.cli.compose import compose
from sfumato.cli.cost import cost
from sfumato.cli.demo import demo
from sfumato.cli.distill_decoder import distill_decoder
from sfumato.cli.edit import edit
from sfumato.cli.evaluate import evaluate
from sfumato.cli.evaluate_autoencoder import evaluate_autoencoder
from sfumato.cli.export import export
from sfumato.cli.give_decoder import give_decoder
from sfumato.cli.import_ import import_
from sfumato.cli.info import info
from sfumato.cli.inpaint import inpaint
from sfumato.cli.interpolate import interpolate
from sfumato.cli.invert import invert
from sfumato.cli.outpaint import outpaint
from sfumato.cli.paint import paint
from sfumato.cli.reconstruct import reconstruct
from sfumato.cli.sample import sample
from sfumato.cli.sample_codes import sample_codes
from sfumato.cli.samplers import samplers
from sfumato.cli.train_transformer import transformer
from sfumato.cli.upscale import upscale
from sfumato.cli.zoo import zoo
from sfumato.errors import SURROUNDINGS, UserError

app = typer.Typer(
    name="sfumato",
    help="Latent diffusion models you can train from a folder of images.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
train.app.command(cls=Command)(transformer)
app.add_typer(train.app, name="train", help="Train one of the stages, a classifier, the baseline.")
app.add_typer(study.app, name="study", help="Compare trainings of equal budget on your data.")
COMMANDS = (
    demo,
    sample,
    sample_codes,
    paint,
    compose,
    upscale,
    inpaint,
    edit,
    outpaint,
    interpolate,
    invert,
    average,
    distill_decoder,
    give_decoder,
    reconstruct,
    evaluate,
    evaluate_autoencoder,
    compare,
    info,
    cost,
    bench,
    samplers,
    zoo,
)
for command in COMMANDS:
    app.command(cls=Command)(command)
app.command("import", cls=Command)(import_)
app.command(cls=Command)(export)


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


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs the command line (sys.argv by default); a mistake of the user is one sentence on stderr and exit code 2."""
    try:
        check_texts(sys.argv[1:] if arguments is None else arguments)
        app(arguments)
    except UserError as error:
        sentence = str(error)
    except OSError as error:
        if error.errno not in SURROUNDINGS:
            raise
        sentence = f"{error.strerror}{f': {error.filename!r}' if error.filename else ''}; {SURROUNDINGS[error.errno]}"
    else:
        return
    typer.echo(f"sfumato: {sentence}", err=True)
    sys.exit(2)
