"""The trainings in the folder of a run: data, caches, networks, previews and export around each loop."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from sfumato.conditioning.sources import fetching

if TYPE_CHECKING:
    from sfumato.cli.progress import Report
    from sfumato.data.conditions.config import ConditionsConfig
    from sfumato.data.dataset import Dataset, LatentSource
    from sfumato.data.latents import LatentDataset
    from sfumato.model import LatentDiffusion
    from sfumato.training.autoencoder_run import AutoencoderRun
    from sfumato.training.classifier import ClassifierRun
    from sfumato.training.data import RunData
    from sfumato.training.diffusion_run import DiffusionRun
    from sfumato.training.few_steps import FewStepRun
    from sfumato.training.joint_run import JointRun
    from sfumato.training.run import RunFolder
    from sfumato.training.state import TrainState
    from sfumato.training.transformer import TransformerRun
    from sfumato.training.workers import Workers

    AnyRun = AutoencoderRun | ClassifierRun | DiffusionRun | FewStepRun | JointRun | TransformerRun


@dataclass(frozen=True)
class OpenRun:
    """A run that is trained here: its folder, its caches, and the processes of the training."""

    folder: "RunFolder"
    cache: Path
    workers: "Workers"

    def claimed_data(
        self,
        config: "AnyRun",
        say: Callable[[str], None],
        progress: "Callable[[str], Report]",
        conditions: "ConditionsConfig | None" = None,
    ) -> "RunData":
        """The data of the configuration, once the folder is this run's; the leading process calls it first.

        `conditions` adds the fields of maps and boxes. Raises UserError as `RunFolder.claim` and `open_data` do.
        """
        from sfumato.training.data import open_data

        self.folder.claim(config)
        return open_data(config.data, config.held_out, self.folder.path, self.cache, say, progress, conditions)

    def encoded(
        self,
        first: "LatentDiffusion",
        images: "Dataset",
        config: "DiffusionRun | ClassifierRun | TransformerRun | FewStepRun",
        say: Callable[[str], None],
        progress: "Callable[[str], Report]",
        mirrored: bool | None = None,
    ) -> "LatentDataset":
        """The latents of `images` under `first`, from the run's cache where they are; `mirrored` as configured."""
        from sfumato.training.encode import cached_latents

        return cached_latents(
            first,
            images,
            self.cache,
            config.mirrored if mirrored is None else mirrored,
            precision=config.train.precision,
            progress=progress("encoding"),
            workers=self.workers,
            log=say,
        )

    def end(self, state: "TrainState", result: str) -> "TrainState":
        """Disconnects the processes, prints where the `result` is, if one was written, and returns the state.

        Raises typer.Exit with 130 or 143 where a signal stopped the training, which has printed how to resume: a shell
        must not continue with a stage that builds on this one.
        """
        self.workers.close()
        if self.workers.leads and state.step > state.skipped:
            typer.echo(f"{result}: {self.folder.model}")
        if state.stopped_by:
            raise typer.Exit(128 + state.stopped_by)
        return state


@contextmanager
def open_run(out: Path, cache: Path | None) -> Iterator[OpenRun]:
    """Within the block the run in the folder `out` is trained here, on all cores and by nobody else.

    `cache` is the folder of decoded images and latents, by default that of the run. Raises UserError as
    `RunFolder.session` does.
    """
    from sfumato.training.run import RunFolder
    from sfumato.training.workers import Workers, use_all_cores

    use_all_cores()
    workers, folder = Workers(), RunFolder(out)
    with folder.session(workers, cache):
        yield OpenRun(folder, cache or folder.path / "cache", workers)


def run_autoencoder(config: "AutoencoderRun", out: Path, cache: Path | None) -> "TrainState":
    """Trains stage 1 in the folder `out`. Raises typer.Exit after a signal, with a checkpoint saved."""

    with open_run(out, cache) as run:
        return _autoencoder(config, run)


def _autoencoder(config: "AutoencoderRun", run: OpenRun) -> "TrainState":
    from sfumato.cli.progress import bars
    from sfumato.training.autoencoder import train_autoencoder
    from sfumato.training.export import save_autoencoder
    from sfumato.training.previews import Reconstructions

    folder, workers = run.folder, run.workers
    with bars(active=workers.leads) as (say, progress), workers.leader_first():
        data = run.claimed_data(config, say, progress)
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
    return run.end(state, "model")


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
    from sfumato.training.second_stage import check_sizes

    check_sizes(config, first)
    with open_run(out, cache) as run:
        return _diffusion(config, first, run, retype)


def _diffusion(
    config: "DiffusionRun",
    first: "LatentDiffusion",
    run: OpenRun,
    retype: Callable[[str], str] | None,
) -> "TrainState":
    from sfumato.training.diffusion import train_diffusion
    from sfumato.training.evaluation import SampleEvaluation
    from sfumato.training.export import save_diffusion
    from sfumato.training.previews import samples_of
    from sfumato.training.second_stage import conditional_denoiser

    folder, workers = run.folder, run.workers
    first = first.to(workers.device)
    model, data, source = _model_and_data(config, first, run, retype)
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
    return run.end(state, "model")


def _model_and_data(
    config: "DiffusionRun",
    first: "LatentDiffusion",
    run: OpenRun,
    retype: Callable[[str], str] | None,
) -> "tuple[LatentDiffusion, RunData, LatentSource]":
    """The model before training, the data of the run, and the encoded latents with their conditions."""
    from sfumato.cli.progress import bars
    from sfumato.data.conditions.captions import texts_of
    from sfumato.training.conditions import with_conditions, with_crops
    from sfumato.training.needs import check_needs, same_command
    from sfumato.training.second_stage import build_model, caption_notes

    folder, cache, workers = run.folder, run.cache, run.workers
    precision = config.train.precision
    with bars(active=workers.leads) as (say, progress):
        with workers.leader_first():
            data = run.claimed_data(config, say, progress, config.conditions)
            check_needs(config.conditioner, data, retype or same_command)
        images = with_crops(data.training, config.conditions)
        latents = run.encoded(first, images, config, say, progress)
        masked = progress("encoding masked images")
        source = with_conditions(
            latents, images, first, config.data, config.conditions, cache, precision, masked, workers, say
        )
        texts = texts_of(data.training)
        split = workers.splits(config.train.shard)
        blank = split and not workers.leads
        model = build_model(config, first, latents, source.fields, data.conditioning_metadata, texts, blank)
        assert model.second is not None
        conditioner = model.second.conditioner
        model = replace(model, scaling=model.scaling.to(workers.device)) if split else model.to(workers.device)
        for note in caption_notes(conditioner, texts):
            say(note)
        folder.describe(say)
    return model, data, source


@fetching(typer.echo)
def run_joint(
    config: "JointRun",
    out: Path,
    cache: Path | None,
    retype: Callable[[str], str] | None = None,
) -> "TrainState":
    """Trains both stages at once in the folder `out`; as `run_diffusion` otherwise."""
    from sfumato.training.joint_model import first_model
    from sfumato.training.joint_run import second_stage
    from sfumato.training.second_stage import check_sizes

    check_sizes(second_stage(config), first_model(config))
    with open_run(out, cache) as run:
        return _joint(config, run, retype)


def _joint(config: "JointRun", run: OpenRun, retype: Callable[[str], str] | None) -> "TrainState":
    from sfumato.cli.progress import bars
    from sfumato.data.conditions.captions import texts_of, with_sampled_captions
    from sfumato.diffusion.schedule import build_schedule
    from sfumato.training.joint import train_joint
    from sfumato.training.joint_model import JointPreview, joint_model, joint_networks, save_joint
    from sfumato.training.needs import check_needs, same_command
    from sfumato.training.second_stage import caption_notes

    folder, workers = run.folder, run.workers
    with bars(active=workers.leads) as (say, progress), workers.leader_first():
        data = run.claimed_data(config, say, progress)
        check_needs(config.conditioner, data, retype or same_command)
        texts = texts_of(data.training)
        model = joint_model(config, data.training, texts).to(workers.device)
        assert model.second is not None
        for note in caption_notes(model.second.conditioner, texts):
            say(note)
        preview = JointPreview.of(config, model, data, folder)
        folder.describe(say)
    state = train_joint(
        config,
        joint_networks(model),
        build_schedule(config.schedule),
        with_sampled_captions(data.training, data.training),
        folder,
        preview,
        lambda joint, state: save_joint(config, model, joint, folder, state),
        workers,
    )
    return run.end(state, "model")


def run_classifier(config: "ClassifierRun", first: "LatentDiffusion", out: Path, cache: Path | None) -> "TrainState":
    """Trains a classifier in the folder `out` on the first stage of `first`; as `run_autoencoder` otherwise."""
    from sfumato.training.data import height_width
    from sfumato.training.second_stage import check_factor

    factor = config.classifier.encoder.factor
    check_factor(height_width(config.data), factor, "classifier.encoder.channel_multipliers", first)
    with open_run(out, cache) as run:
        return _classifier(config, first, run)


def _classifier(config: "ClassifierRun", first: "LatentDiffusion", run: OpenRun) -> "TrainState":
    from sfumato.cli.progress import bars
    from sfumato.training.classifier import HeldOutAccuracy, initial_classifier, train_classifier
    from sfumato.training.export import save_classifier

    folder, workers = run.folder, run.workers
    first = first.to(workers.device)
    with bars(active=workers.leads) as (say, progress):
        with workers.leader_first():
            data = run.claimed_data(config, say, progress)
        latents = run.encoded(first, data.training, config, say, progress)
        aside = run.encoded(first, data.measured, config, say, progress, mirrored=False)
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
    return run.end(state, "classifier")


@fetching(typer.echo)
def run_transformer(
    config: "TransformerRun",
    first: "LatentDiffusion",
    out: Path,
    cache: Path | None,
    retype: Callable[[str], str] | None = None,
) -> "TrainState":
    """Trains in the folder `out` on the codes of `first`; as `run_diffusion` otherwise."""
    with open_run(out, cache) as run:
        return _transformer(config, first, run, retype)


def _transformer(
    config: "TransformerRun",
    first: "LatentDiffusion",
    run: OpenRun,
    retype: Callable[[str], str] | None,
) -> "TrainState":
    from sfumato.cli.progress import bars
    from sfumato.data.conditions.captions import texts_of, with_sampled_captions
    from sfumato.training.export import save_transformer
    from sfumato.training.needs import check_needs, same_command
    from sfumato.training.previews import CodeSamples
    from sfumato.training.second_stage import caption_notes
    from sfumato.training.transformer import ConditionalTransformer, build_transformer, train_transformer

    folder, workers = run.folder, run.workers
    first = first.to(workers.device)
    with bars(active=workers.leads) as (say, progress):
        with workers.leader_first():
            data = run.claimed_data(config, say, progress)
            check_needs(config.conditioner, data, retype or same_command)
        latents = run.encoded(first, data.training, config, say, progress)
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
    return run.end(state, "model")
