"""`sfumato train transformer`."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from sfumato.cli.train import CacheOption, ConfigArgument, DataOption, OutOption, OverridesArgument, with_data

if TYPE_CHECKING:
    from sfumato.model import LatentDiffusion
    from sfumato.training.run import RunFolder
    from sfumato.training.state import TrainState
    from sfumato.training.transformer import TransformerRun
    from sfumato.training.workers import Workers


def transformer(
    config: ConfigArgument,
    out: OutOption,
    autoencoder: Annotated[Path, typer.Option("--autoencoder", help="A trained VQ autoencoder's run or model folder.")],
    overrides: OverridesArgument = None,
    data: DataOption = None,
    cache: CacheOption = None,
) -> None:
    """Train the baseline: a transformer that writes codes."""
    from sfumato.autoregressive.model import codebook_of
    from sfumato.config import apply_overrides, parse, read_source
    from sfumato.model import load
    from sfumato.training.transformer import TransformerRun

    raw = apply_overrides(read_source(config), overrides or [])
    first = load(autoencoder)
    codebook_of(first)
    run_transformer(parse(with_data(raw, data, first.config.image_size), TransformerRun, config), first, out, cache)


def run_transformer(config: "TransformerRun", first: "LatentDiffusion", out: Path, cache: Path | None) -> "TrainState":
    """Trains in the folder `out` on the codes of `first`; as `run_diffusion` otherwise."""
    from sfumato.training.run import RunFolder
    from sfumato.training.workers import Workers, use_all_cores

    use_all_cores()
    workers, folder = Workers(), RunFolder(out)
    with folder.session(workers, cache):
        return _transformer(config, first, folder, cache, workers)


def _transformer(
    config: "TransformerRun", first: "LatentDiffusion", folder: "RunFolder", cache: Path | None, workers: "Workers"
) -> "TrainState":
    from sfumato.cli.progress import bars
    from sfumato.training.data import open_data
    from sfumato.training.encode import cached_latents
    from sfumato.training.export import save_transformer
    from sfumato.training.previews import CodeSamples
    from sfumato.training.transformer import Prompted, begin, train_transformer

    first = first.to(workers.device)
    place = cache or folder.path / "cache"
    with bars(active=workers.leads) as (say, progress):
        with workers.leader_first():
            folder.claim(config)
            data = open_data(config.data, config.held_out, folder.path, place, say, progress)
        latents = cached_latents(
            first,
            data.training,
            place,
            config.mirrored,
            precision=config.train.precision,
            progress=progress("encoding"),
            workers=workers,
        )
        model = begin(config, first, latents).to(workers.device)
        folder.describe(say)
    assert first.autoencoder.quantize is not None
    state = train_transformer(
        config,
        Prompted(model.network, model.conditioner),
        first.autoencoder.quantize,
        latents,
        folder,
        CodeSamples.of(model, data, folder.previews),
        lambda networks, state: save_transformer(model, networks, config, folder, state),
        workers,
    )
    workers.close()
    if workers.leads:
        typer.echo(f"model: {folder.model}")
    return state
