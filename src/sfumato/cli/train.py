"""`sfumato train autoencoder` and `sfumato train diffusion`."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from sfumato.model import LatentDiffusion
    from sfumato.training.autoencoder import AutoencoderRun
    from sfumato.training.diffusion import DiffusionRun

app = typer.Typer(no_args_is_help=True, rich_markup_mode=None, pretty_exceptions_enable=False)

ConfigArgument = Annotated[
    str, typer.Argument(metavar="CONFIG", help="A YAML file, or a zoo name such as zoo:toy/text.")
]
OverridesArgument = Annotated[
    list[str] | None, typer.Argument(metavar="[a.b=c]...", help="Settings to change, such as train.steps=2000.")
]
DataOption = Annotated[Path | None, typer.Option("--data", help="The folder of images. The toy world needs none.")]
OutOption = Annotated[Path, typer.Option("--out", help="The run's folder; an interrupted run there is resumed.")]
CacheOption = Annotated[
    Path | None, typer.Option("--cache", help="Where decoded pictures and latents are kept [default: OUT/cache].")
]


@app.command("autoencoder")
def autoencoder(
    config: ConfigArgument,
    out: OutOption,
    overrides: OverridesArgument = None,
    data: DataOption = None,
    cache: CacheOption = None,
) -> None:
    """Train stage 1: image <-> latent."""
    from sfumato.config import apply_overrides, parse, read_source
    from sfumato.training.autoencoder import AutoencoderRun

    raw = apply_overrides(read_source(config), overrides or [])
    run_autoencoder(parse(with_data(raw, data), AutoencoderRun, config), out, cache)


@app.command("diffusion")
def diffusion(
    config: ConfigArgument,
    out: OutOption,
    autoencoder: Annotated[Path, typer.Option("--autoencoder", help="A trained autoencoder: its run or model folder.")],
    overrides: OverridesArgument = None,
    data: DataOption = None,
    cache: CacheOption = None,
) -> None:
    """Train stage 2: noise -> latent, steered by text, classes or nothing."""
    from sfumato.config import apply_overrides, parse, read_source
    from sfumato.model import load
    from sfumato.training.diffusion import DiffusionRun

    raw = apply_overrides(read_source(config), overrides or [])
    first = load(autoencoder)
    raw = with_data(raw, data, first.config.image_size)
    run_diffusion(parse(raw, DiffusionRun, config), first, out, cache)


def with_data(raw: dict[str, Any], data: Path | None, size: tuple[int, int] | None = None) -> dict[str, Any]:
    """The raw configuration with `--data` in it; a configuration for the toy world given a folder reads the folder.

    Raises UserError where a folder is needed and none is named.
    """
    from sfumato.errors import UserError

    given = dict(raw.get("data") or {})
    if size is not None:
        given.setdefault("size", list(size))
    if data is not None:
        if given.get("kind", "folder") != "folder":
            given = {"size": given.get("size", 64)}
        given |= {"kind": "folder", "path": str(data)}
    elif given.get("kind", "folder") == "folder" and "path" not in given:
        raise UserError("--data is missing: give the folder of images to train on")
    return {**raw, "data": given}


def run_autoencoder(config: "AutoencoderRun", out: Path, cache: Path | None) -> None:
    """Trains stage 1 in the folder `out`."""
    from sfumato.cli.progress import bars
    from sfumato.training.autoencoder import train_autoencoder
    from sfumato.training.data import open_data
    from sfumato.training.export import save_autoencoder
    from sfumato.training.previews import Reconstructions
    from sfumato.training.run import RunFolder
    from sfumato.training.workers import use_all_cores

    use_all_cores()
    folder = RunFolder(out)
    folder.claim(config)
    with bars() as (say, progress):
        data = open_data(config.data, config.held_out, out, cache or out / "cache", say, progress)
        shown = data.held_out or data.training
        preview = Reconstructions.of(shown, config.train.preview_images, folder.previews, config.train.precision)
        folder.describe(say)
    train_autoencoder(
        config, data.training, folder, preview, lambda net, state: save_autoencoder(net, config, data, folder, state)
    )
    typer.echo(f"model: {folder.model}")


def run_diffusion(config: "DiffusionRun", first: "LatentDiffusion", out: Path, cache: Path | None) -> None:
    """Trains stage 2 in the folder `out` on the first stage of `first`."""
    from sfumato.cli.progress import bars
    from sfumato.training.data import open_data
    from sfumato.training.diffusion import train_diffusion
    from sfumato.training.encode import cached_latents
    from sfumato.training.export import save_diffusion
    from sfumato.training.previews import Samples
    from sfumato.training.run import RunFolder
    from sfumato.training.second_stage import begin, steered
    from sfumato.training.workers import use_all_cores

    use_all_cores()
    folder = RunFolder(out)
    folder.claim(config)
    place = cache or out / "cache"
    with bars() as (say, progress):
        data = open_data(config.data, config.held_out, out, place, say, progress)
        latents = cached_latents(first, data.training, place, config.mirrored, progress=progress("encoding"))
        model = begin(config, first, latents)
    assert model.second is not None
    preview = Samples.of(model, data, folder.previews, config.train.precision)
    train_diffusion(
        config,
        steered(model),
        model.second.schedule,
        model.autoencoder,
        model.scaling,
        latents,
        folder,
        preview,
        lambda networks, state: save_diffusion(model, networks, config, folder, state),
    )
    typer.echo(f"model: {folder.model}")
