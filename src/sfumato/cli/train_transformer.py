"""`sfumato train transformer`."""

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from sfumato.cli.train import (
    CacheOption,
    ConfigArgument,
    DataOption,
    OutOption,
    OverridesArgument,
    conclude,
    retyping,
    with_data,
    with_overrides,
)
from sfumato.conditioning.sources import fetching

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
    from sfumato.baselines.model import codebook_of
    from sfumato.config import parse
    from sfumato.model_folder import load
    from sfumato.training.transformer import TransformerRun

    raw = with_overrides(config, overrides or [], TransformerRun)
    first = load(autoencoder)
    codebook_of(first)
    run = parse(with_data(raw, data, first.config.image_size), TransformerRun, config)
    options = {"--data": data, "--autoencoder": autoencoder, "--out": out, "--cache": cache}
    run_transformer(run, first, out, cache, retyping("transformer", config, overrides or [], options))


@fetching(typer.echo)
def run_transformer(
    config: "TransformerRun",
    first: "LatentDiffusion",
    out: Path,
    cache: Path | None,
    retype: Callable[[str], str] | None = None,
) -> "TrainState":
    """Trains in the folder `out` on the codes of `first`; as `run_diffusion` otherwise."""
    from sfumato.training.run import RunFolder
    from sfumato.training.workers import Workers, use_all_cores

    use_all_cores()
    workers, folder = Workers(), RunFolder(out)
    with folder.session(workers, cache):
        return _transformer(config, first, folder, cache, workers, retype)


def _transformer(
    config: "TransformerRun",
    first: "LatentDiffusion",
    folder: "RunFolder",
    cache: Path | None,
    workers: "Workers",
    retype: Callable[[str], str] | None,
) -> "TrainState":
    from sfumato.cli.progress import bars
    from sfumato.data.conditions.captions import texts_of, with_sampled_captions
    from sfumato.training.data import open_data
    from sfumato.training.encode import cached_latents
    from sfumato.training.export import save_transformer
    from sfumato.training.needs import check_needs, same_command
    from sfumato.training.previews import CodeSamples
    from sfumato.training.second_stage import caption_notes
    from sfumato.training.transformer import ConditionalTransformer, build_transformer, train_transformer

    first = first.to(workers.device)
    place = cache or folder.path / "cache"
    with bars(active=workers.leads) as (say, progress):
        with workers.leader_first():
            folder.claim(config)
            data = open_data(config.data, config.held_out, folder.path, place, say, progress)
            check_needs(config.conditioner, data, retype or same_command)
        latents = cached_latents(
            first,
            data.training,
            place,
            config.mirrored,
            precision=config.train.precision,
            progress=progress("encoding"),
            workers=workers,
            log=say,
        )
        texts = texts_of(data.training)
        model = build_transformer(config, first, latents, texts).to(workers.device)
        for note in caption_notes(model.conditioner, texts):
            say(note)
        folder.describe(say)
    assert first.autoencoder.quantize is not None
    state = train_transformer(
        config,
        ConditionalTransformer(model.network, model.conditioner),
        first.autoencoder.quantize,
        with_sampled_captions(latents, data.training),
        folder,
        CodeSamples.of(model, data, folder.previews),
        lambda networks, state: save_transformer(model, networks, config, folder, state),
        workers,
    )
    conclude(state, workers, f"model: {folder.model}")
    return state
