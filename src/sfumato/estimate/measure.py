"""Measures a few steps of the real training loops on this machine, in a temporary folder."""

import resource
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import TypeVar

import torch
from torch import Tensor, nn

from sfumato.autoencoder.losses import AdversarialConfig
from sfumato.autoencoder.model import Autoencoder
from sfumato.conditioning.condition import ConditionSpec
from sfumato.conditioning.metadata import ConditioningMetadata
from sfumato.data.dataset import Dataset, LatentSource
from sfumato.data.latents import MeasuredLatents
from sfumato.data.loader import sweep
from sfumato.data.split import Subset
from sfumato.denoiser.flow_map import step_inputs
from sfumato.engine.precision import Precision, autocast
from sfumato.estimate.memory import blank_condition
from sfumato.estimate.speed import seconds
from sfumato.estimate.synthetic import SyntheticLatents
from sfumato.estimate.work import Stage1Step
from sfumato.model import LatentDiffusion
from sfumato.pipeline.conditions import source_of
from sfumato.pipeline.parts import second_stage
from sfumato.pipeline.plan import guidance_scale
from sfumato.pipeline.students import calls_twice
from sfumato.training.autoencoder import train_autoencoder
from sfumato.training.autoencoder_run import AutoencoderRun, AutoencoderTraining
from sfumato.training.conditions import with_conditions
from sfumato.training.data import RunData
from sfumato.training.diffusion import ConditionalDenoiser, train_diffusion
from sfumato.training.diffusion_run import DiffusionRun, DiffusionTraining
from sfumato.training.encode import cached_latents
from sfumato.training.export import save_autoencoder, save_diffusion
from sfumato.training.log import read_lines
from sfumato.training.previews import Reconstructions, samples_of
from sfumato.training.run import RunFolder
from sfumato.training.second_stage import build_model, conditional_denoiser
from sfumato.training.session import raise_if_stopped
from sfumato.training.transformer import (
    ConditionalTransformer,
    TransformerRun,
    TransformerTraining,
    build_transformer,
    train_transformer,
)
from sfumato.training.workers import Workers

WARM_UP = 2
"""Steps that are not counted: kernels are compiled and memory is allocated."""
ENCODED_IMAGES = 64
"""At least this many images are encoded for conditions."""
NEVER = 10**9
T = TypeVar("T", AutoencoderTraining, DiffusionTraining, TransformerTraining)


@dataclass(frozen=True)
class Timing:
    """Seconds of a step, of a preview, and of writing model and state; peak memory of the process in bytes."""

    step: float
    preview: float
    save: float
    peak_memory: int


def time_first_stage(
    config: AutoencoderRun, step_kind: Stage1Step, data: Dataset, steps: int, workers: Workers, alone: bool = False
) -> Timing:
    """The timing of a step of stage 1 of this kind; `alone`: of the step only, preview and save are 0."""
    loss = config.loss.model_copy(update={"adversarial": _always(config.loss.adversarial, step_kind)})
    trial = config.model_copy(update={"loss": loss, "train": _trial(config.train, steps)})
    with TemporaryDirectory(prefix="sfumato-estimate-") as path:
        folder = RunFolder(Path(path))
        folder.claim(trial)
        _reset_peak(workers.device)
        state = raise_if_stopped(train_autoencoder(trial, data, folder, _no_metrics, _write_nothing, workers))
        if alone:
            return Timing(_step(folder, steps), 0.0, 0.0, _peak(workers.device))
        network = state.modules["ema"]
        assert isinstance(network, Autoencoder)
        preview = Reconstructions.of(data, config.train.preview_images, folder.previews, config.train.precision)
        return Timing(
            step=_step(folder, steps),
            preview=seconds(lambda: preview(network, 0), workers.device),
            save=seconds(lambda: save_autoencoder(network, trial, RunData(data, None), folder, state), workers.device)
            + seconds(lambda: folder.save(state), workers.device),
            peak_memory=_peak(workers.device),
        )


def time_second_stage(
    config: DiffusionRun,
    first: LatentDiffusion,
    data: Dataset,
    steps: int,
    workers: Workers,
    metadata: ConditioningMetadata | None = None,
    alone: bool = False,
) -> tuple[Timing, LatentDiffusion]:
    """The timing of a step of stage 2 on synthetic latents, and the barely trained model.

    `alone`: the timing of the step only, preview and save are 0.
    `metadata` describes the data's maps and boxes. Conditions that are computed from images, such as small images and
    masks, need real latents: then some images are encoded.
    """
    trial = config.model_copy(update={"train": _trial(config.train, steps)})
    with TemporaryDirectory(prefix="sfumato-estimate-") as path:
        folder = RunFolder(Path(path))
        folder.claim(trial)
        latents, source = _latents_to_time(trial, first, data, folder.path / "cache", workers)
        model = build_model(trial, first, latents, source.fields, metadata).to(workers.device)
        assert model.second is not None
        preview = samples_of(model, RunData(data, None), folder.previews, trial)
        _reset_peak(workers.device)
        state = train_diffusion(
            trial,
            conditional_denoiser(model),
            model.second.schedule,
            model.autoencoder,
            model.scaling,
            source,
            folder,
            _no_metrics,
            _write_nothing,
            workers,
        )
        raise_if_stopped(state)
        if alone:
            return Timing(_step(folder, steps), 0.0, 0.0, _peak(workers.device)), model
        networks = state.modules["ema"]
        assert isinstance(networks, ConditionalDenoiser)
        timing = Timing(
            step=_step(folder, steps),
            preview=seconds(lambda: preview(networks, 0), workers.device),
            save=seconds(lambda: save_diffusion(model, networks, trial, folder, state), workers.device)
            + seconds(lambda: folder.save(state), workers.device),
            peak_memory=_peak(workers.device),
        )
    return timing, model


def code_step_seconds(
    config: TransformerRun, first: LatentDiffusion, data: Dataset, steps: int, workers: Workers
) -> float:
    """Seconds of a step of the transformer over codes, on synthetic latents."""
    trial = config.model_copy(update={"train": _trial(config.train, steps)})
    latents = _synthetic_latents(first, data)
    quantize = first.autoencoder.quantize
    assert quantize is not None
    with TemporaryDirectory(prefix="sfumato-estimate-") as path:
        folder = RunFolder(Path(path))
        folder.claim(trial)
        model = build_transformer(trial, first, latents).to(workers.device)
        networks = ConditionalTransformer(model.network, model.conditioner)
        raise_if_stopped(
            train_transformer(trial, networks, quantize, latents, folder, _no_metrics, _write_nothing, workers)
        )
        return _step(folder, steps)


@torch.no_grad()
def encoding_seconds(first: LatentDiffusion, data: Dataset, precision: Precision, batch: int = 32) -> float:
    """Seconds of reading and encoding one image for stage 2."""

    def encode(images: Tensor) -> None:
        images = images.to(first.device).contiguous(memory_format=torch.channels_last)
        first.autoencoder.encode(images).moments.cpu()

    with autocast(first.device, precision):
        parts = sweep(data, batch, range(min(3 * batch, len(data))), unreadable=_ignore)
        warm = next(parts).images
        encode(warm)
        t_start, encoded = time.perf_counter(), 0
        for part in parts:
            encode(part.images)
            encoded += len(part.index)
        if not encoded:
            encode(warm)
            encoded = len(warm)
    return (time.perf_counter() - t_start) / encoded


@torch.no_grad()
def sampling_seconds(model: LatentDiffusion, precision: Precision, batch: int = 8) -> tuple[float, float]:
    """Seconds of a network call (with both halves if guided) and of decoding, per image, as in `sample`.

    The model's weights are packed for inference; it cannot be trained afterwards.
    """
    half = autocast(model.device, precision)._enabled
    model.for_inference(None if model.device.type == "cpu" else torch.bfloat16 if half else torch.float32)
    second, latent = model.second, torch.randn(batch, *model.latent_shape, device=model.device)
    assert second is not None
    doubled = 2 if guided(model) else 1
    x_t, t = torch.cat([latent] * doubled), torch.full((batch * doubled,), 500.0, device=model.device)
    if second.config.student is not None:
        t = step_inputs(t, t, 1.0)
    spec = ConditionSpec() if second.conditioner is None else second.conditioner.spec
    with model.device:
        condition = blank_condition(second.config.conditioner, spec, len(x_t), model.latent_shape[1:])
    calls = [seconds(lambda: second.denoiser(x_t, t, condition), model.device) for _ in range(4)]
    decodings = [seconds(lambda: model.decode(latent), model.device) for _ in range(2)]
    return min(calls) / batch, min(decodings) / batch


def guided(model: LatentDiffusion) -> bool:
    """Whether `sample` calls the network twice per step: the model is conditioned and has an unconditional mode."""
    return calls_twice(second_stage(model)) and guidance_scale(source_of(model), None) != 1.0


def _latents_to_time(
    config: DiffusionRun, first: LatentDiffusion, data: Dataset, cache: Path, workers: Workers
) -> tuple[MeasuredLatents, LatentSource]:
    """The latents, and the source that the training loop reads: latents with conditions."""
    if not config.conditions.gives:
        synthetic = _synthetic_latents(first, data)
        return synthetic, synthetic
    enough = max(ENCODED_IMAGES, config.train.batch * config.train.accumulate)
    some = Subset(data, range(min(enough, len(data))))
    precision = config.train.precision
    latents = cached_latents(first, some, cache, config.mirrored, precision=precision, workers=workers)
    source = with_conditions(latents, some, first, config.data, config.conditions, cache, precision, workers=workers)
    return latents, source


def _synthetic_latents(first: LatentDiffusion, data: Dataset) -> SyntheticLatents:
    C, h, w = first.latent_shape
    return SyntheticLatents(data, (2 * C if first.autoencoder.variational else C, h, w), C)


def _always(config: AdversarialConfig, step_kind: Stage1Step) -> AdversarialConfig:
    """The adversarial term such that every step is of this kind."""
    if config.weight == 0:
        return config
    always = {"generator": (NEVER, 0), "discriminator warm-up": (NEVER, NEVER), "both": (0, 0)}
    start, warmup = always[step_kind]
    return config.model_copy(update={"start": start, "warmup_steps": warmup, "ramp_steps": 0})


def _trial(train: T, steps: int) -> T:
    each = {"log_every": 1, "preview_every": NEVER, "save_every": NEVER}
    return train.model_copy(update={"steps": WARM_UP + steps, "minutes": None, "step_limits": None, **each})


def _step(folder: RunFolder, steps: int) -> float:
    """The median over the last steps; the log contains cumulative seconds."""
    cumulative = [line["seconds"] for line in read_lines(folder.path / "log.jsonl") if "seconds" in line]
    return median(
        after - before for before, after in zip(cumulative[-steps - 1 : -1], cumulative[-steps:], strict=True)
    )


def _no_metrics(network: nn.Module, step: int) -> Mapping[str, float | list[float]]:
    return {}


def _write_nothing(network: nn.Module, state: object) -> None:
    pass


def _ignore(row: int, error: Exception) -> None:
    pass


def _reset_peak(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)


def _peak(device: torch.device) -> int:
    """Peak bytes: of the allocator on a GPU, of the process elsewhere."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
