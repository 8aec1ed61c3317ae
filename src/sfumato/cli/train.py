"""`sfumato train autoencoder`, `train diffusion`, `train joint`, `train classifier` and `train transformer`."""

from dataclasses import dataclass
from pathlib import Path

import typer

from sfumato.cli.arguments import Command, Group
from sfumato.cli.flags import REQUIRED, command, flag
from sfumato.cli.run_configuration import check_given_once, retyping, with_data, with_overrides, with_start
from sfumato.cli.training_runs import run_autoencoder, run_classifier, run_diffusion, run_joint, run_transformer

app = typer.Typer(cls=Group, no_args_is_help=True, rich_markup_mode=None, pretty_exceptions_enable=False)


@dataclass(frozen=True, kw_only=True)
class RunFlags:
    """The options of every training."""

    config: str = flag(
        REQUIRED,
        "machine",
        "A YAML file, or a zoo name such as zoo:toy/text.",
        metavar="CONFIG",
        argument=True,
        path=True,
    )
    overrides: list[str] | None = flag(
        None, "machine", "Settings to change, such as train.steps=2000.", metavar="[a.b=c]...", argument=True
    )
    out: Path = flag(REQUIRED, "output", "The run's folder; an interrupted run there is resumed.")
    data: str | None = flag(
        None, "what to sample", "The folder of images, or shards. The toy world needs none.", metavar="PLACE"
    )
    cache: Path | None = flag(None, "output", "Where decoded images and latents are kept [default: OUT/cache].")

    @property
    def changes(self) -> list[str]:
        """The settings to change. Raises UserError for one that an option gives too."""
        options = {"data.path": ("--data", self.data), "start": ("--start", getattr(self, "start", None))}
        check_given_once(self.overrides or [], options)
        return self.overrides or []

    @property
    def typed(self) -> dict[str, str | Path | None]:
        """The options with paths, by name."""
        return {"--data": self.data, "--out": self.out, "--cache": self.cache}


@dataclass(frozen=True, kw_only=True)
class Starting:
    """Where a training of the two stages starts."""

    start: Path | None = flag(
        None, "machine", "A model or run to start from, instead of random weights.", metavar="MODEL"
    )


@dataclass(frozen=True, kw_only=True)
class AutoencoderFlags(Starting, RunFlags):
    """The options of `sfumato train autoencoder`."""


@dataclass(frozen=True, kw_only=True)
class DiffusionFlags(Starting, RunFlags):
    """The options of `sfumato train diffusion`."""

    autoencoder: Path = flag(
        REQUIRED,
        "what to sample",
        "A trained autoencoder's run or model folder; pixels for none (f = 1).",
    )


@dataclass(frozen=True, kw_only=True)
class JointFlags(RunFlags):
    """The options of `sfumato train joint`."""


@dataclass(frozen=True, kw_only=True)
class ClassifierFlags(RunFlags):
    """The options of `sfumato train classifier`."""

    autoencoder: Path = flag(
        REQUIRED,
        "what to sample",
        "The autoencoder of the model to guide: a run or model folder; or pixels.",
    )


@dataclass(frozen=True, kw_only=True)
class TransformerFlags(RunFlags):
    """The options of `sfumato train transformer`."""

    autoencoder: Path = flag(REQUIRED, "what to sample", "A trained VQ autoencoder's run or model folder.")


@app.command("autoencoder", cls=Command)
@command(AutoencoderFlags)
def autoencoder(flags: AutoencoderFlags) -> None:
    """Train stage 1: image <-> latent."""
    from sfumato.config import parse
    from sfumato.training.autoencoder_run import AutoencoderRun

    raw = with_start(with_overrides(flags.config, flags.changes, AutoencoderRun), flags.start)
    state = run_autoencoder(parse(with_data(raw, flags.data), AutoencoderRun, flags.config), flags.out, flags.cache)
    for sentence in latent_sentences(flags.out, state.step):
        typer.echo(sentence, err=True)


def latent_sentences(run: Path, step: int) -> list[str]:
    """Readings of the numbers about the latent in the last such line of a run's log; in the leading process only."""
    from sfumato.cards.readings import logged_readings
    from sfumato.training.launch import launched
    from sfumato.training.log import read_lines

    lines = [] if launched().rank else read_lines(run / "log.jsonl")
    return next((logged_readings(line) for line in reversed(lines) if "viv" in line and line["step"] == step), [])


@app.command("diffusion", cls=Command)
@command(DiffusionFlags)
def diffusion(flags: DiffusionFlags) -> None:
    """Train stage 2: noise -> latent.

    Conditioned on text, classes, label maps, boxes, images, or nothing.
    """
    from sfumato.cli.run_configuration import on_first_stage
    from sfumato.training.diffusion_run import DiffusionRun

    raw = with_start(with_overrides(flags.config, flags.changes, DiffusionRun), flags.start)
    run, first = on_first_stage(raw, DiffusionRun, flags.config, flags.data, flags.autoencoder)
    options = {"--autoencoder": flags.autoencoder, **flags.typed, "--start": flags.start}
    run_diffusion(run, first, flags.out, flags.cache, retyping("diffusion", flags.config, flags.changes, options))


@app.command("joint", cls=Command)
@command(JointFlags)
def joint(flags: JointFlags) -> None:
    """Train both stages at once, for research.

    The result is a two-stage model like any other. coupling.kind=naive, detached, prior or anchored chooses how the
    latents are kept from collapsing (easy to predict, but without information).
    """
    from sfumato.config import parse
    from sfumato.training.joint_run import JointRun

    raw = with_overrides(flags.config, flags.changes, JointRun)
    run = parse(with_data(raw, flags.data), JointRun, flags.config)
    run_joint(run, flags.out, flags.cache, retyping("joint", flags.config, flags.changes, flags.typed))


@app.command("classifier", cls=Command)
@command(ClassifierFlags)
def classifier(flags: ClassifierFlags) -> None:
    """Train a classifier of noisy latents, for guidance."""
    from sfumato.cli.run_configuration import on_first_stage
    from sfumato.training.classifier import ClassifierRun

    raw = with_overrides(flags.config, flags.changes, ClassifierRun)
    run, first = on_first_stage(raw, ClassifierRun, flags.config, flags.data, flags.autoencoder)
    run_classifier(run, first, flags.out, flags.cache)


@app.command("transformer", cls=Command)
@command(TransformerFlags)
def transformer(flags: TransformerFlags) -> None:
    """Train the baseline: an autoregressive transformer over codes."""
    from sfumato.baselines.model import codebook_of
    from sfumato.config import parse
    from sfumato.model_folder import load
    from sfumato.training.transformer import TransformerRun

    raw = with_overrides(flags.config, flags.changes, TransformerRun)
    first = load(flags.autoencoder)
    codebook_of(first)
    run = parse(with_data(raw, flags.data, first.config.image_size), TransformerRun, flags.config)
    options = {"--autoencoder": flags.autoencoder, **flags.typed}
    run_transformer(run, first, flags.out, flags.cache, retyping("transformer", flags.config, flags.changes, options))
