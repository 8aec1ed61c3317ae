"""The second stages of a study: diffusion on the latents, or a transformer on their codes; trained, and judged."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from sfumato.baselines.model import CodeModel, load_code_model
from sfumato.data.latents import LatentDataset
from sfumato.engine.precision import autocast
from sfumato.estimate.memory import parameters
from sfumato.model import LatentDiffusion
from sfumato.model_folder import load
from sfumato.pipeline import pipeline
from sfumato.pipeline.request import SampleRequest
from sfumato.studies.bench import SAMPLED_TOGETHER, Bench, finished
from sfumato.studies.pace import Pace
from sfumato.studies.plan import Arm, codes_run, latent_of, second_run
from sfumato.studies.result import Drawing
from sfumato.training import transformer
from sfumato.training.diffusion import ConditionalDenoiser, train_diffusion
from sfumato.training.export import save_diffusion, save_transformer
from sfumato.training.previews import with_code_networks, with_networks
from sfumato.training.run import RunFolder
from sfumato.training.second_stage import build_model, conditional_denoiser
from sfumato.training.transformer import ConditionalTransformer, train_transformer

Values = Mapping[str, float | list[float]]


@dataclass(frozen=True)
class Second:
    """A finished second stage: the size of its network, its training, and what it draws."""

    parameters: int
    steps: int
    seconds: float
    drawings: tuple[Drawing, ...]


def diffusion(
    bench: Bench, arm: Arm, steps: int, pace: Pace, first: LatentDiffusion, latents: LatentDataset, folder: Path
) -> Second:
    """Trains so many steps of diffusion in the arm's folder, or what is left of them; judged on the way and after."""
    config, workers = bench.config, bench.workers
    run = second_run(config, arm, latent_of(config, arm.way), steps, pace.second_seconds)
    model = build_model(run, first, latents).to(workers.device)
    assert model.second is not None
    home = RunFolder(second_folder(folder))

    def judged(networks: ConditionalDenoiser, step: int) -> Values:
        with autocast(workers.device, config.precision):
            images = _sampled(with_networks(model, networks), config.samples)
        return {"kernel_distance": bench.judge(images).kernel}

    with home.session(workers):
        home.claim(run)
        state = train_diffusion(
            run,
            conditional_denoiser(model),
            model.second.schedule,
            model.autoencoder,
            model.scaling,
            latents,
            home,
            judged,
            lambda networks, state: save_diffusion(model, networks, run, home, state),
            workers,
        )
    seconds = finished(state)
    trained = load(home.path, workers.device)
    assert trained.second is not None
    size = parameters([trained.second.denoiser])
    return Second(size, steps, seconds, tuple(_diffusion_drawings(bench, trained, folder)))


def codes(
    bench: Bench, arm: Arm, steps: int, pace: Pace, first: LatentDiffusion, latents: LatentDataset, folder: Path
) -> Second:
    """As `diffusion`, of a transformer over the codes of the latents."""
    config, workers = bench.config, bench.workers
    run = codes_run(config, arm, latent_of(config, arm.way), steps, pace.second_seconds)
    model = transformer.build_transformer(run, first, latents).to(workers.device)
    assert first.autoencoder.quantize is not None
    home = RunFolder(second_folder(folder))

    def judged(networks: ConditionalTransformer, step: int) -> Values:
        return {"kernel_distance": bench.judge(_written(with_code_networks(model, networks), config.samples)).kernel}

    with home.session(workers):
        home.claim(run)
        state = train_transformer(
            run,
            ConditionalTransformer(model.network, model.conditioner),
            first.autoencoder.quantize,
            latents,
            home,
            judged,
            lambda networks, state: save_transformer(model, networks, run, home, state),
            workers,
        )
    seconds = finished(state)
    trained = load_code_model(home.path, workers.device)
    _written(trained, 1)  # whatever is compiled on first use
    h, w = trained.network.size
    drawing = bench.drawing(lambda: _written(trained, config.samples), h * w, folder)
    return Second(parameters([trained.network]), steps, seconds, (drawing,))


def second_folder(folder: Path) -> Path:
    """Of the second stage's run, in an arm's folder."""
    return folder / "diffusion"


def _diffusion_drawings(bench: Bench, model: LatentDiffusion, folder: Path) -> list[Drawing]:
    """At every number of sampling steps, as `sfumato sample` draws: packed."""
    config = bench.config
    model.for_inference(torch.bfloat16 if autocast(model.device, config.precision)._enabled else torch.float32)
    found = []
    for steps in config.sampling_steps:
        _sampled(model, 1, 1)  # whatever is compiled on first use

        def draw(steps: int = steps) -> Tensor:
            return _sampled(model, config.samples, steps)

        found.append(bench.drawing(draw, steps, folder))
    return found


def _sampled(model: LatentDiffusion, count: int, steps: int | None = None) -> Tensor:
    """Images (count, 3, H, W) of the seeds from 0 on."""
    return pipeline.sample(model, SampleRequest(count=count, steps=steps, batch=SAMPLED_TOGETHER)).images


def _written(model: CodeModel, count: int) -> Tensor:
    """Images (count, 3, H, W) of the seeds from 0 on."""
    parts = torch.arange(count).split(SAMPLED_TOGETHER)
    return torch.cat([model.sample_tensor(seeds=part.tolist()).cpu() for part in parts])
