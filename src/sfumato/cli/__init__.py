"""The command line: one small file a command; heavy imports happen inside the commands."""

import signal
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cached_property
from types import FrameType
from typing import Annotated, Any, NoReturn

import typer
import typer.main

from sfumato import __version__
from sfumato.cli import study, train
from sfumato.cli.arguments import Command, Group, check_texts
from sfumato.cli.bench import bench
from sfumato.cli.compare import compare
from sfumato.cli.data import data
from sfumato.cli.demo import demo
from sfumato.cli.distill import distill
from sfumato.cli.distill_decoder import distill_decoder
from sfumato.cli.doctor import doctor
from sfumato.cli.edit import edit
from sfumato.cli.ema import ema
from sfumato.cli.estimate import estimate
from sfumato.cli.evaluate import evaluate
from sfumato.cli.evaluate_autoencoder import evaluate_autoencoder
from sfumato.cli.export import export
from sfumato.cli.fit import fit
from sfumato.cli.import_ import import_
from sfumato.cli.info import info
from sfumato.cli.inpaint import inpaint
from sfumato.cli.interpolate import interpolate
from sfumato.cli.invert import invert
from sfumato.cli.layout_to_image import layout_to_image
from sfumato.cli.outpaint import outpaint
from sfumato.cli.push import push
from sfumato.cli.quantize import quantize
from sfumato.cli.reconstruct import reconstruct
from sfumato.cli.replace_decoder import replace_decoder
from sfumato.cli.reproduce import reproduce
from sfumato.cli.sample import sample
from sfumato.cli.samplers import samplers
from sfumato.cli.semantic_to_image import semantic_to_image
from sfumato.cli.serve import serve
from sfumato.cli.shard import shard
from sfumato.cli.studio import studio
from sfumato.cli.upscale import upscale
from sfumato.cli.zoo import zoo
from sfumato.errors import SURROUNDINGS, Interrupted, UserError
from sfumato.foreign import printable


class App(typer.Typer):
    """The commands, put together once a process: typer does so at each call, which takes longer than many a command."""

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self.parser(*args, **kwargs)

    @cached_property
    def parser(self) -> Any:
        """The group of all commands."""
        return typer.main.get_command(self)


app = App(
    name="sfumato",
    cls=Group,
    help="Latent diffusion models you can train from a folder of images.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
SMALLER = (
    "give a smaller batch (train.batch, with train.accumulate for the same step), train.checkpointing=true, or "
    "SFUMATO_GRAPHS=0, which keeps no recordings"
)
"""Remedies for a lack of memory."""

app.add_typer(train.app, name="train", help="Train a stage, both, a classifier, or the baseline.")
app.add_typer(study.app, name="study", help="Compare trainings of equal budget on your data.")
COMMANDS = (
    data,
    shard,
    fit,
    demo,
    sample,
    reproduce,
    semantic_to_image,
    layout_to_image,
    upscale,
    inpaint,
    edit,
    outpaint,
    interpolate,
    invert,
    ema,
    distill,
    distill_decoder,
    replace_decoder,
    quantize,
    reconstruct,
    evaluate,
    evaluate_autoencoder,
    compare,
    info,
    estimate,
    bench,
    studio,
    serve,
    samplers,
    zoo,
    push,
    doctor,
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
    """Runs the command line (sys.argv by default).

    A mistake of the user is one sentence on stderr and exit code 2; SIGINT and SIGTERM end with 130 and 143, which
    stops what a shell was to run next.
    """
    with _signals():
        try:
            check_texts(sys.argv[1:] if arguments is None else arguments)
            app(arguments)
        except UserError as error:
            _end(str(error), 2)
        except Interrupted as interrupted:
            name = signal.Signals(interrupted.number).name
            _end(f"stopped by {name}: the same command starts again or resumes", 128 + interrupted.number, symptom=True)
        except OSError as error:
            if error.errno not in SURROUNDINGS:
                raise
            where = f": {error.filename!r}" if error.filename else ""
            _end(f"{error.strerror}{where}; {SURROUNDINGS[error.errno]}", 2)
        except RuntimeError as error:
            _end_with(error)


@contextmanager
def _signals() -> Iterator[None]:
    """Within the block SIGINT and SIGTERM raise Interrupted, so that what was begun is put away."""

    def interrupted(number: int, frame: FrameType | None) -> None:
        raise Interrupted(number)

    numbers = (signal.SIGINT, signal.SIGTERM)
    if threading.current_thread() is not threading.main_thread():
        yield  # signals stay with whoever has it
        return
    previous = {number: signal.signal(number, interrupted) for number in numbers}
    try:
        yield
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


def _end(sentence: str, code: int, symptom: bool = False) -> NoReturn:
    """Prints why, once where there are several processes, and ends."""
    from sfumato.training.launch import end_together, launched

    try:
        launch = launched()
    except UserError:  # about the environment: it is the error that is being printed
        launch = None
    if launch is not None and launch.world > 1:
        end_together(launch, sentence, code, symptom)
    typer.echo(f"sfumato: {printable(' '.join(sentence.splitlines()))}", err=True)
    sys.exit(code)


def _end_with(error: RuntimeError) -> NoReturn:
    """Ends where the machine, or another process of the run, is the cause; raises what is a defect of the program."""
    from sfumato.training.launch import launched, lost_a_process

    if type(error).__name__ == "OutOfMemoryError":
        _end(f"{' '.join(str(error).split())[:300]}; {SMALLER}", 2)
    if launched().world > 1 and lost_a_process(error):
        _end("another process of this run has ended: the same command resumes from the last state", 1, symptom=True)
    raise error
