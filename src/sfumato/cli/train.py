"""`sfumato train autoencoder`, `sfumato train diffusion` and `sfumato train classifier`."""

import shlex
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from sfumato.cli.arguments import Command, Group, MaybePath
from sfumato.conditioning.sources import fetching

if TYPE_CHECKING:
    from pydantic import BaseModel

    from sfumato.data.dataset import LatentSource
    from sfumato.model import LatentDiffusion
    from sfumato.training.autoencoder import AutoencoderRun
    from sfumato.training.classifier import ClassifierRun
    from sfumato.training.data import RunData
    from sfumato.training.diffusion import DiffusionRun
    from sfumato.training.run import RunFolder
    from sfumato.training.state import TrainState
    from sfumato.training.workers import Workers

app = typer.Typer(cls=Group, no_args_is_help=True, rich_markup_mode=None, pretty_exceptions_enable=False)

ConfigArgument = Annotated[
    str, typer.Argument(metavar="CONFIG", help="A YAML file, or a zoo name such as zoo:toy/text."), MaybePath()
]
OverridesArgument = Annotated[
    list[str] | None, typer.Argument(metavar="[a.b=c]...", help="Settings to change, such as train.steps=2000.")
]
DataOption = Annotated[Path | None, typer.Option("--data", help="The folder of images. The toy world needs none.")]
OutOption = Annotated[Path, typer.Option("--out", help="The run's folder; an interrupted run there is resumed.")]
CacheOption = Annotated[
    Path | None, typer.Option("--cache", help="Where decoded images and latents are kept [default: OUT/cache].")
]
StartOption = Annotated[
    Path | None,
    typer.Option("--start", metavar="MODEL", help="A model or run to start from, instead of random weights."),
]


@app.command("autoencoder", cls=Command)
def autoencoder(
    config: ConfigArgument,
    out: OutOption,
    overrides: OverridesArgument = None,
    data: DataOption = None,
    cache: CacheOption = None,
    start: StartOption = None,
) -> None:
    """Train stage 1: image <-> latent."""
    from sfumato.config import parse
    from sfumato.training.autoencoder import AutoencoderRun

    raw = with_start(with_overrides(config, overrides or [], AutoencoderRun), start)
    run_autoencoder(parse(with_data(raw, data), AutoencoderRun, config), out, cache)


@app.command("diffusion", cls=Command)
def diffusion(
    config: ConfigArgument,
    out: OutOption,
    autoencoder: Annotated[
        Path,
        typer.Option("--autoencoder", help="A trained autoencoder's run or model folder; pixels for none (f = 1)."),
    ],
    overrides: OverridesArgument = None,
    data: DataOption = None,
    cache: CacheOption = None,
    start: StartOption = None,
) -> None:
    """Train stage 2: noise -> latent, conditioned on text, classes or nothing."""
    from sfumato.config import parse
    from sfumato.model import pixel_space
    from sfumato.model_folder import load
    from sfumato.training.data import height_width
    from sfumato.training.diffusion import DiffusionRun

    raw = with_start(with_overrides(config, overrides or [], DiffusionRun), start)
    if str(autoencoder) == "pixels":
        run = parse(with_data(raw, data), DiffusionRun, config)
        first = pixel_space(height_width(run.data))
    else:
        first = load(autoencoder)
        run = parse(with_data(raw, data, first.config.image_size), DiffusionRun, config)
    options = {"--data": data, "--autoencoder": autoencoder, "--out": out, "--cache": cache, "--start": start}
    run_diffusion(run, first, out, cache, retyping("diffusion", config, overrides or [], options))


@app.command("classifier", cls=Command)
def classifier(
    config: ConfigArgument,
    out: OutOption,
    autoencoder: Annotated[
        Path,
        typer.Option("--autoencoder", help="That of the model it is to guide: a run or model folder; or pixels."),
    ],
    overrides: OverridesArgument = None,
    data: DataOption = None,
    cache: CacheOption = None,
) -> None:
    """Train a classifier of noisy latents, to guide with."""
    from sfumato.config import parse
    from sfumato.model import pixel_space
    from sfumato.model_folder import load
    from sfumato.training.classifier import ClassifierRun
    from sfumato.training.data import height_width

    raw = with_overrides(config, overrides or [], ClassifierRun)
    if str(autoencoder) == "pixels":
        run = parse(with_data(raw, data), ClassifierRun, config)
        first = pixel_space(height_width(run.data))
    else:
        first = load(autoencoder)
        run = parse(with_data(raw, data, first.config.image_size), ClassifierRun, config)
    run_classifier(run, first, out, cache)


def with_overrides(config: str, overrides: Sequence[str], schema: "type[BaseModel]") -> dict[str, Any]:
    """The raw configuration with the overrides in it; prints what an override of a kind drops.

    The dropout of conditions that a file asks for goes where an override takes the conditioner away.
    """
    from sfumato.config import apply_overrides, read_source

    def say(message: str) -> None:
        typer.echo(message, err=True)

    raw = apply_overrides(read_source(config), overrides, schema, say)
    conditioner, train = raw.get("conditioner"), raw.get("train")
    typed = {override.partition("=")[0] for override in overrides}
    if typed & {"conditioner", "conditioner.kind"} and conditioner == {"kind": "none"} and isinstance(train, dict):
        for name in {"condition_dropout", "part_dropout"} & train.keys():
            if f"train.{name}" not in typed:
                say(f"conditioner.kind=none: train.{name} does not apply to it, dropped")
                del train[name]
    return raw


def retyping(
    command: str, config: str, overrides: Sequence[str], options: Mapping[str, Path | None]
) -> Callable[[str], str]:
    """The command as it was typed, with another setting of the conditioner, for the shell."""

    def with_setting(setting: str) -> str:
        kept = [override for override in overrides if not override.startswith("conditioner")]
        given = [word for name, value in options.items() if value is not None for word in (name, str(value))]
        return shlex.join(["sfumato", "train", command, config, setting, *kept, *given])

    return with_setting


def with_data(raw: dict[str, Any], data: Path | None, size: tuple[int, int] | None = None) -> dict[str, Any]:
    """The raw configuration with `--data` in it; a configuration for the toy world given a folder reads the folder.

    What only the toy world knows, such as its length, is then left out; the rest of `data` holds for the folder.
    Raises UserError where a folder is needed and none is named.
    """
    from sfumato.config import section
    from sfumato.data.folder_config import FolderConfig
    from sfumato.data.toyworld.dataset import ToyWorldConfig
    from sfumato.errors import UserError

    given = section(raw, "data")
    if size is not None:
        given.setdefault("size", list(size))
    if data is not None:
        if given.get("kind", "folder") != "folder":
            toy = ToyWorldConfig.model_fields.keys() - FolderConfig.model_fields.keys()
            given = {"size": 64} | {name: value for name, value in given.items() if name not in toy}
        given |= {"kind": "folder", "path": str(data)}
    elif given.get("kind", "folder") == "folder" and "path" not in given:
        raise UserError("--data is missing: give the folder of images to train on")
    return {**raw, "data": given}


def with_start(raw: dict[str, Any], start: Path | None) -> dict[str, Any]:
    """The raw configuration with `--start` in it."""
    return raw if start is None else {**raw, "start": str(start)}


def conclude(state: "TrainState", workers: "Workers", result: str) -> None:
    """Parts the processes of a training and prints `result`, where a model was written.

    Raises typer.Exit with 130 or 143 where a signal stopped the training, which has printed how to resume: a shell must
    not go on with a stage that builds on this one.
    """
    workers.close()
    if workers.leads and state.step > state.skipped:
        typer.echo(result)
    if state.stopped_by:
        raise typer.Exit(128 + state.stopped_by)


def run_autoencoder(config: "AutoencoderRun", out: Path, cache: Path | None) -> "TrainState":
    """Trains stage 1 in the folder `out`. Raises typer.Exit after a signal, with a checkpoint saved."""
    from sfumato.training.run import RunFolder
    from sfumato.training.workers import Workers, use_all_cores

    use_all_cores()
    workers, folder = Workers(), RunFolder(out)
    with folder.session(workers, cache):
        return _autoencoder(config, folder, cache, workers)


def _autoencoder(config: "AutoencoderRun", folder: "RunFolder", cache: Path | None, workers: "Workers") -> "TrainState":
    from sfumato.cli.progress import bars
    from sfumato.training.autoencoder import train_autoencoder
    from sfumato.training.data import open_data
    from sfumato.training.export import save_autoencoder
    from sfumato.training.previews import Reconstructions

    with bars(active=workers.leads) as (say, progress), workers.leader_first():
        folder.claim(config)
        data = open_data(config.data, config.held_out, folder.path, cache or folder.path / "cache", say, progress)
        train = config.train
        preview = Reconstructions.of(
            data.measured, train.preview_images, folder.previews, train.precision, data.about_measured
        )
        folder.describe(say)
    state = train_autoencoder(
        config,
        data.training,
        folder,
        preview,
        lambda net, state: save_autoencoder(net, config, data, folder, state),
        workers,
    )
    conclude(state, workers, f"model: {folder.model}")
    return state


@fetching(typer.echo)
def run_diffusion(
    config: "DiffusionRun",
    first: "LatentDiffusion",
    out: Path,
    cache: Path | None,
    retype: Callable[[str], str] | None = None,
) -> "TrainState":
    """Trains stage 2 in the folder `out` on the first stage of `first`; as `run_autoencoder` otherwise.

    `retype` gives the user's command with another setting, see `check_needs`.
    """
    from sfumato.training.run import RunFolder
    from sfumato.training.second_stage import check_sizes
    from sfumato.training.workers import Workers, use_all_cores

    use_all_cores()
    check_sizes(config, first)
    workers, folder = Workers(), RunFolder(out)
    with folder.session(workers, cache):
        return _diffusion(config, first, folder, cache, workers, retype)


def _diffusion(
    config: "DiffusionRun",
    first: "LatentDiffusion",
    folder: "RunFolder",
    cache: Path | None,
    workers: "Workers",
    retype: Callable[[str], str] | None,
) -> "TrainState":
    from sfumato.training.diffusion import train_diffusion
    from sfumato.training.evaluation import SampleEvaluation
    from sfumato.training.export import save_diffusion
    from sfumato.training.previews import samples_of
    from sfumato.training.second_stage import conditional_denoiser

    first = first.to(workers.device)
    model, data, source = _model_and_data(config, first, folder, cache or folder.path / "cache", workers, retype)
    assert model.second is not None
    preview = samples_of(model, data, folder.previews, config)
    evaluate = None
    if config.train.evaluation.every and workers.leads:
        evaluate = SampleEvaluation.of(
            model,
            data,
            config.train.evaluation,
            config.train.precision,
            lambda networks, state: save_diffusion(model, networks, config, folder, state, folder.best),
        )
    state = train_diffusion(
        config,
        conditional_denoiser(model),
        model.second.schedule,
        model.autoencoder,
        model.scaling,
        source,
        folder,
        preview,
        lambda networks, state: save_diffusion(model, networks, config, folder, state),
        workers,
        evaluate,
    )
    conclude(state, workers, f"model: {folder.model}")
    return state


def _model_and_data(
    config: "DiffusionRun",
    first: "LatentDiffusion",
    folder: "RunFolder",
    cache: Path,
    workers: "Workers",
    retype: Callable[[str], str] | None,
) -> "tuple[LatentDiffusion, RunData, LatentSource]":
    """The model before training, the data of the run, and the encoded latents with their conditions."""
    from sfumato.cli.progress import bars
    from sfumato.data.conditions.captions import texts_of
    from sfumato.training.conditions import with_conditions
    from sfumato.training.data import open_data
    from sfumato.training.encode import cached_latents
    from sfumato.training.needs import check_needs, same_command
    from sfumato.training.second_stage import build_model, caption_notes

    precision = config.train.precision
    with bars(active=workers.leads) as (say, progress):
        with workers.leader_first():
            folder.claim(config)
            data = open_data(config.data, config.held_out, folder.path, cache, say, progress, config.conditions)
            check_needs(config.conditioner, data, retype or same_command)
        encoding = progress("encoding")
        latents = cached_latents(
            first,
            data.training,
            cache,
            config.mirrored,
            precision=precision,
            progress=encoding,
            workers=workers,
            log=say,
        )
        masked = progress("encoding masked images")
        source = with_conditions(
            latents, data.training, first, config.data, config.conditions, cache, precision, masked, workers, say
        )
        texts = texts_of(data.training)
        model = build_model(config, first, latents, source.fields, data.conditioning_metadata, texts).to(workers.device)
        assert model.second is not None
        for note in caption_notes(model.second.conditioner, texts):
            say(note)
        folder.describe(say)
    return model, data, source


def run_classifier(config: "ClassifierRun", first: "LatentDiffusion", out: Path, cache: Path | None) -> "TrainState":
    """Trains a classifier in the folder `out` on the first stage of `first`; as `run_autoencoder` otherwise."""
    from sfumato.training.data import height_width
    from sfumato.training.run import RunFolder
    from sfumato.training.second_stage import check_factor
    from sfumato.training.workers import Workers, use_all_cores

    use_all_cores()
    factor = config.classifier.encoder.factor
    check_factor(height_width(config.data), factor, "classifier.encoder.channel_multipliers", first)
    workers, folder = Workers(), RunFolder(out)
    with folder.session(workers, cache):
        return _classifier(config, first, folder, cache, workers)


def _classifier(
    config: "ClassifierRun", first: "LatentDiffusion", folder: "RunFolder", cache: Path | None, workers: "Workers"
) -> "TrainState":
    from sfumato.cli.progress import bars
    from sfumato.training.classifier import HeldOutAccuracy, initial_classifier, train_classifier
    from sfumato.training.data import open_data
    from sfumato.training.encode import cached_latents
    from sfumato.training.export import save_classifier

    first = first.to(workers.device)
    place, precision = cache or folder.path / "cache", config.train.precision
    with bars(active=workers.leads) as (say, progress):
        with workers.leader_first():
            folder.claim(config)
            data = open_data(config.data, config.held_out, folder.path, place, say, progress)
        latents, aside = (
            cached_latents(
                first,
                part,
                place,
                mirrored,
                precision=precision,
                progress=progress("encoding"),
                workers=workers,
                log=say,
            )
            for part, mirrored in ((data.training, config.mirrored), (data.measured, False))
        )
        made, scaling = initial_classifier(config, first, latents)
        folder.describe(say)
    scaling = scaling.to(workers.device)
    state = train_classifier(
        config,
        made,
        first.autoencoder,
        scaling,
        latents,
        folder,
        HeldOutAccuracy(
            aside, first.autoencoder, scaling, made.schedule, config.train.preview_images, data.about_measured
        ),
        lambda network, state: save_classifier(made, network, config, folder, state),
        workers,
    )
    conclude(state, workers, f"classifier: {folder.model}")
    return state
