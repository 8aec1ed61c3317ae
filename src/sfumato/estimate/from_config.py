"""Estimates from a run's configuration; measuring is separate because it needs time and memory."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import nn

from sfumato import flops
from sfumato.conditioning.condition import ConditionSpec
from sfumato.conditioning.metadata import ConditioningMetadata
from sfumato.data.dataset import Dataset
from sfumato.denoiser.table import build_denoiser
from sfumato.diffusion.schedule import build_schedule
from sfumato.engine.precision import Precision, autocast
from sfumato.errors import UserError
from sfumato.estimate import measure, memory, work
from sfumato.estimate.calls import network_calls
from sfumato.estimate.report import Estimate, Phase, SampleCost, affordable_steps
from sfumato.estimate.scaling import Sizes
from sfumato.estimate.speed import USUAL_UTILISATION, arithmetic_peak
from sfumato.model import DiffusionConfig, LatentDiffusion
from sfumato.nn.init import without_weights
from sfumato.report.machine import describe
from sfumato.sampling.table import SAMPLERS
from sfumato.training.autoencoder import untrained_autoencoder
from sfumato.training.autoencoder_run import AutoencoderRun
from sfumato.training.data import height_width
from sfumato.training.diffusion_run import DiffusionRun
from sfumato.training.optim import moments
from sfumato.training.second_stage import check_sizes
from sfumato.training.steps import Length
from sfumato.training.workers import Workers

MOST_SECONDS = 300.0
"""Limit of the time for measuring, in seconds; fewer steps are measured if they would take longer."""


@dataclass(frozen=True)
class MeasurementOptions:
    """How to measure: workers, the images to read, the number of steps to time, and the data's metadata on maps and
    boxes."""

    workers: Workers
    data: Dataset
    steps: int
    metadata: ConditioningMetadata | None = None


# ---- stage 1


def first_stage(config: AutoencoderRun, name: str) -> Estimate:
    """The estimate of `sfumato train autoencoder`, without measurements."""
    train, size = config.train, height_width(config.data)
    with without_weights():
        autoencoder, discriminator = untrained_autoencoder(config), memory.discriminator_of(config)
    perceptual, aligned = memory.perceptual_network(config), work.aligned_network(config)
    features = None if aligned is None else aligned.network
    phases = [
        Phase(kind, steps if train.minutes is None else None, work.first_stage(config, kind))
        for kind, steps in _step_kinds(config)
    ]
    most = phases[-1].name
    assert most in ("generator", "discriminator warm-up", "both")
    activations = memory.first_stage_activations(config, most, half(train.precision))  # type: ignore[arg-type]  # as asserted
    optimiser_moments = moments(train.optimiser, autoencoder)
    if discriminator is not None:
        optimiser_moments += moments(train.discriminator, discriminator)
    f = config.model.factor
    counts = {
        "autoencoder": autoencoder,
        "discriminator": discriminator,
        "perceptual": perceptual,
        "features": features,
    }
    return Estimate(
        config=name,
        stage="autoencoder",
        image_size=size,
        latent=(config.model.raw_channels, size[0] // f, size[1] // f),
        parameters={part: memory.parameters([module]) for part, module in counts.items() if module is not None},
        samples=train.batch * train.accumulate,
        phases=tuple(phases),
        memory=memory.memory_of(
            [autoencoder, discriminator], [autoencoder], [perceptual, features], optimiser_moments, activations
        ),
        encoding_operations=flops.encode(config.model, size),
        minutes=train.minutes,
        limited=train.step_limits is not None,
        preview_every=train.preview_every,
        save_every=train.save_every,
    )


def measured_first_stage(estimate: Estimate, config: AutoencoderRun, options: MeasurementOptions) -> Estimate:
    """The estimate with times measured on this machine. Raises UserError if measuring would take too long."""
    peak = arithmetic_peak(options.workers.device, config.train.precision)
    options = _limit_steps(estimate, peak, options)
    kinds = _step_kinds(config)
    data, steps, workers = options.data, options.steps, options.workers
    timings = [measure.time_first_stage(config, kind, data, steps, workers) for kind, _ in kinds]
    timed = [replace(phase, timing=timing) for phase, timing in zip(estimate.phases, timings, strict=True)]
    phases = _within_minutes(timed, [count for _, count in kinds], config.train)
    return replace(estimate, phases=tuple(phases), peak=peak, device=describe(options.workers.device).device)


def _step_kinds(config: AutoencoderRun) -> list[tuple[work.Stage1Step, int]]:
    """The kinds of steps with their numbers; the maximum number if the run is limited by minutes."""
    train = config.train
    return list(work.phases(config.loss.adversarial, train.steps if train.minutes is None else measure.NEVER))


# ---- stage 2


def second_stage(config: DiffusionRun, first: LatentDiffusion, name: str, sampling_steps: int) -> Estimate:
    """The estimate of `sfumato train diffusion` on this first stage, without measurements; images by all samplers."""
    check_sizes(config, first)
    train, size = config.train, height_width(config.data)
    second, latent = diffusion_config(config), first.latent_shape_of(size)
    with without_weights():
        conditioner = memory.build_meta_conditioner(config.conditioner)
        spec = ConditionSpec() if conditioner is None else conditioner.spec
        denoiser = build_denoiser(config.denoiser, latent[0], spec)
    activations = memory.second_stage_activations(
        second, latent, spec, train.batch, half(train.precision), train.checkpointing
    )
    autoencoder, trained = first.autoencoder, [part for part in (denoiser, conditioner) if part is not None]
    counts = {"denoiser": denoiser, "conditioner": conditioner, "autoencoder": autoencoder}
    return Estimate(
        config=name,
        stage="diffusion",
        image_size=size,
        latent=latent,
        parameters={part: memory.parameters([module]) for part, module in counts.items() if module is not None},
        samples=train.batch * train.accumulate,
        phases=(
            Phase("denoiser", train.steps if train.minutes is None else None, work.second_stage(second, latent, spec)),
        ),
        memory=memory.memory_of(trained, trained, [autoencoder], moments(train.optimiser, *trained), activations),
        sample_costs=tuple(_images(second, first, size, spec, sampling_steps)),
        encoding_operations=encodings(config) * flops.encode(first.config.autoencoder, size),
        minutes=train.minutes,
        limited=train.step_limits is not None,
        preview_every=train.preview_every,
        save_every=train.save_every,
        sizes=_sizes(trained, autoencoder),
        shard=train.shard,
        accumulate=train.accumulate,
    )


def _sizes(trained: Sequence[nn.Module], frozen: nn.Module) -> Sizes:
    """The numbers of parameters that matter where networks are in parts."""
    from sfumato.training.sharding import units

    blocks = [memory.parameters([unit]) for module in trained for unit in units(module)]
    whole = memory.parameters(trained)
    return Sizes(
        memory.parameters(trained, trainable=True), memory.parameters([frozen]), whole - sum(blocks), max(blocks)
    )


def measured_second_stage(
    estimate: Estimate, config: DiffusionRun, first: LatentDiffusion, options: MeasurementOptions
) -> Estimate:
    """The estimate with times measured on this machine. Raises UserError if measuring would take too long."""
    precision = config.train.precision
    peak = arithmetic_peak(options.workers.device, precision)
    options = _limit_steps(estimate, peak, options)
    first = first.to(options.workers.device)
    timing, model = measure.time_second_stage(
        config, first, options.data, options.steps, options.workers, options.metadata
    )
    encoding = (
        measure.encoding_seconds(first, options.data, precision) * encodings(config) * (2 if config.mirrored else 1)
    )
    call, decoding = measure.sampling_seconds(model, precision)
    sample_costs = [replace(p, seconds=p.calls * call + decoding) for p in estimate.sample_costs]
    return replace(
        estimate,
        phases=tuple(_within_minutes([replace(estimate.phases[0], timing=timing)], [measure.NEVER], config.train)),
        peak=peak,
        device=describe(options.workers.device).device,
        encoding_seconds=encoding,
        sample_costs=tuple(sample_costs),
    )


def encodings(config: DiffusionRun) -> int:
    """How often each image is encoded: whole, and with each variant of its mask."""
    return 1 if config.conditions.mask is None else 1 + config.conditions.mask.variants


def diffusion_config(config: DiffusionRun) -> DiffusionConfig:
    """The configuration of the second stage that a run trains."""
    return DiffusionConfig(
        denoiser=config.denoiser,
        conditioner=config.conditioner,
        schedule=config.schedule,
        prediction=config.objective.prediction,
        condition_dropout=0.0 if config.conditioner.kind == "none" else config.train.condition_dropout,
    )


def half(precision: Precision, device: str = "cpu") -> bool:
    """Whether a run computes in bfloat16 on the device."""
    return autocast(torch.device(device), precision)._enabled


def _images(
    config: DiffusionConfig, first: LatentDiffusion, size: tuple[int, int], spec: ConditionSpec, steps: int
) -> list[SampleCost]:
    """The cost of an image with every sampler that supports this number of steps on the configured schedule."""
    schedule = build_schedule(config.schedule)
    cost = work.image(first.config.autoencoder, config, size, spec, config.condition_dropout > 0)
    found = []
    for name, facts in SAMPLERS.items():
        try:
            calls = network_calls(facts.config(), schedule, steps)  # type: ignore[arg-type]  # one of the union
        except (UserError, ValueError):
            continue  # the sampler or its grid does not support this schedule
        found.append(SampleCost(name, steps, calls, cost.of(calls)))
    return found


def _within_minutes(phases: list[Phase], most: list[int], length: Length) -> list[Phase]:
    """Timed phases with the steps of a run of minutes, without phases never reached; unchanged for a run of steps."""
    if length.minutes is None:
        return phases
    each = [phase.timing.step for phase in phases if phase.timing is not None]
    counts = affordable_steps(most, each, 60 * length.minutes, length.step_limits)
    return [replace(phase, steps=count) for phase, count in zip(phases, counts, strict=True) if count]


def _limit_steps(estimate: Estimate, peak: float, options: MeasurementOptions) -> MeasurementOptions:
    """The options with fewer steps if the time limit requires it. Raises UserError if not even two steps fit."""
    step = (
        estimate.samples
        * max(phase.work.total for phase in estimate.phases)
        / (USUAL_UTILISATION * peak)
        * len(estimate.phases)
    )
    steps = min(options.steps, int(MOST_SECONDS / step) - measure.WARM_UP)
    if steps < min(2, options.steps):
        raise UserError(
            f"a step of {estimate.config} would take about {step:.0f} s here, too long to measure: give --no-measure "
            "for the estimate without times, or a smaller train.batch"
        )
    return replace(options, steps=steps)
