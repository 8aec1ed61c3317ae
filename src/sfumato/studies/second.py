"""The second stages of a study: diffusion on the latents, or a transformer over their codes; trained and evaluated."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import torch
from pydantic import BaseModel
from torch import Tensor

from sfumato.baselines.model import CodeModel, load_code_model
from sfumato.data.dataset import LatentSource
from sfumato.data.latents import LatentDataset
from sfumato.engine.precision import autocast
from sfumato.estimate.memory import parameters
from sfumato.model import LatentDiffusion
from sfumato.model_folder import load
from sfumato.pipeline import pipeline
from sfumato.pipeline.request import SampleRequest
from sfumato.studies.context import SAMPLED_TOGETHER, StudyContext, finished
from sfumato.studies.plan import Arm, codes_run, latent_of, second_run
from sfumato.studies.result import SamplingResult
from sfumato.studies.step_cost import StepCost
from sfumato.training import transformer
from sfumato.training.diffusion import ConditionalDenoiser, Preview, train_diffusion
from sfumato.training.diffusion_run import DiffusionRun
from sfumato.training.export import save_diffusion, save_transformer
from sfumato.training.previews import with_code_networks, with_networks
from sfumato.training.run import RunFolder
from sfumato.training.second_stage import build_model, conditional_denoiser
from sfumato.training.state import TrainState
from sfumato.training.transformer import ConditionalTransformer, train_transformer
from sfumato.training.workers import Workers

Values = Mapping[str, float | list[float]]
N = TypeVar("N", ConditionalDenoiser, ConditionalTransformer)


@dataclass(frozen=True)
class Second:
    """A finished second stage: the size of its network, its training, and its samples' scores."""

    parameters: int
    steps: int
    seconds: float
    sampling: tuple[SamplingResult, ...]


def diffusion(
    context: StudyContext,
    arm: Arm,
    steps: int,
    cost: StepCost,
    first: LatentDiffusion,
    latents: LatentDataset,
    folder: Path,
) -> Second:
    """Trains diffusion for `steps` steps in the arm's folder, or resumes it; evaluated during and after training."""
    config, workers = context.config, context.workers
    run = second_run(config, arm, latent_of(config, arm.method), steps, cost.second_seconds)
    model = build_model(run, first, latents).to(workers.device)
    assert model.second is not None

    def sampled(networks: ConditionalDenoiser) -> Tensor:
        with autocast(workers.device, config.precision):
            return _sampled(with_networks(model, networks), config.samples)

    preview = _kernel_distance(context, sampled)
    seconds = trained_diffusion(run, model, latents, folder, preview, workers).seconds
    trained = load(second_folder(folder), workers.device)
    assert trained.second is not None
    size = parameters([trained.second.denoiser])
    return Second(size, steps, seconds, tuple(_sampling_results(context, trained, folder)))


def trained_diffusion(
    run: DiffusionRun,
    model: LatentDiffusion,
    latents: LatentSource,
    folder: Path,
    preview: Preview,
    workers: Workers,
) -> TrainState:
    """Trains the second stage of a model in the folder of its arm, or resumes it; its state at the end.

    Raises Stopped after a signal.
    """
    assert model.second is not None
    with own_run(folder, run, workers) as home:
        state = train_diffusion(
            run,
            conditional_denoiser(model),
            model.second.schedule,
            model.autoencoder,
            model.scaling,
            latents,
            home,
            preview,
            lambda networks, state: save_diffusion(model, networks, run, home, state),
            workers,
        )
    finished(state)
    return state


def codes(
    context: StudyContext,
    arm: Arm,
    steps: int,
    cost: StepCost,
    first: LatentDiffusion,
    latents: LatentDataset,
    folder: Path,
) -> Second:
    """As `diffusion`, for a transformer over the codes of the latents."""
    config, workers = context.config, context.workers
    run = codes_run(config, arm, latent_of(config, arm.method), steps, cost.second_seconds)
    model = transformer.build_transformer(run, first, latents).to(workers.device)
    assert first.autoencoder.quantize is not None

    def sampled(networks: ConditionalTransformer) -> Tensor:
        return _sampled_codes(with_code_networks(model, networks), config.samples)

    with own_run(folder, run, workers) as home:
        state = train_transformer(
            run,
            ConditionalTransformer(model.network, model.conditioner),
            first.autoencoder.quantize,
            latents,
            home,
            _kernel_distance(context, sampled),
            lambda networks, state: save_transformer(model, networks, run, home, state),
            workers,
        )
    seconds = finished(state)
    trained = load_code_model(home.path, workers.device)
    _sampled_codes(trained, 1)  # warm-up: some kernels are compiled on first use
    h, w = trained.network.size
    sampling = context.evaluate_sampling(lambda: _sampled_codes(trained, config.samples), h * w, folder)
    return Second(parameters([trained.network]), steps, seconds, (sampling,))


@contextmanager
def own_run(folder: Path, run: BaseModel, workers: Workers) -> Iterator[RunFolder]:
    """The run of the second stage in an arm's folder, claimed for this process."""
    home = RunFolder(second_folder(folder))
    with home.session(workers):
        home.claim(run)
        yield home


def _kernel_distance(context: StudyContext, sampled: Callable[[N], Tensor]) -> Callable[[N, int], Values]:
    """Evaluates what `sampled` samples with the networks of a training."""
    return lambda networks, step: {"kernel_distance": context.evaluator(sampled(networks)).kernel}


def second_folder(folder: Path) -> Path:
    """The run folder of the second stage, in an arm's folder."""
    return folder / "diffusion"


def _sampling_results(context: StudyContext, model: LatentDiffusion, folder: Path) -> list[SamplingResult]:
    """Results at every configured number of sampling steps, with weights packed as in `sfumato sample`."""
    config = context.config
    model.for_inference(torch.bfloat16 if autocast(model.device, config.precision)._enabled else torch.float32)
    found = []
    for steps in config.sampling_steps:
        _sampled(model, 1, 1)  # warm-up: some kernels are compiled on first use

        def sample(steps: int = steps) -> Tensor:
            return _sampled(model, config.samples, steps)

        found.append(context.evaluate_sampling(sample, steps, folder))
    return found


def _sampled(model: LatentDiffusion, count: int, steps: int | None = None) -> Tensor:
    """Images (count, 3, H, W) with seeds 0, 1, ..., count - 1."""
    return pipeline.sample(model, SampleRequest(count=count, steps=steps, batch=SAMPLED_TOGETHER)).images


def _sampled_codes(model: CodeModel, count: int) -> Tensor:
    """Images (count, 3, H, W) with seeds 0, 1, ..., count - 1."""
    parts = torch.arange(count).split(SAMPLED_TOGETHER)
    return torch.cat([model.sample_tensor(seeds=part.tolist()).cpu() for part in parts])
