"""From a run's configuration to its account; measuring is asked for apart, since it takes time and memory."""

from dataclasses import dataclass, replace

import torch

from sfumato import flops
from sfumato.conditioning.condition import ConditionSpec
from sfumato.conditioning.metadata import ConditioningMetadata
from sfumato.data.dataset import Dataset
from sfumato.denoiser.table import build_denoiser
from sfumato.diffusion.schedule import build_schedule
from sfumato.engine.precision import Precision, autocast
from sfumato.errors import UserError
from sfumato.estimate import measure, memory, work
from sfumato.estimate.report import Estimate, Phase, SampleCost, bought
from sfumato.model import DiffusionConfig, LatentDiffusion
from sfumato.report.machine import describe
from sfumato.sampling.table import SAMPLERS
from sfumato.training.autoencoder import AutoencoderRun, untrained_autoencoder
from sfumato.training.data import height_width
from sfumato.training.diffusion import DiffusionRun
from sfumato.training.optim import moments
from sfumato.training.second_stage import check_sizes
from sfumato.training.workers import Workers

PATIENCE = 300.0
"""Seconds that measuring may take; so much that fewer steps are measured where it would take longer."""
USUAL = 0.3
"""The share of the arithmetic peak that training usually reaches, before it is measured."""


@dataclass(frozen=True)
class Means:
    """What measuring is done with: the device, images to read, how many steps to time, and what the data says of
    maps and boxes."""

    workers: Workers
    data: Dataset
    steps: int
    metadata: ConditioningMetadata | None = None


# ---- stage 1


def first_stage(config: AutoencoderRun, name: str) -> Estimate:
    """The account of `sfumato train autoencoder`, nothing measured."""
    train, size = config.train, height_width(config.data)
    with torch.device("meta"):
        autoencoder, judge = untrained_autoencoder(config), memory.discriminator_of(config)
    perceptual = memory.perceptual_network(config)
    phases = [
        Phase(players, steps if train.minutes is None else None, work.first_stage(config, players))
        for players, steps in _line_ups(config)
    ]
    most = phases[-1].name
    assert most in ("generator", "discriminator learns", "both")
    kept = memory.first_stage_activations(config, most, half(train.precision))  # type: ignore[arg-type]  # as asserted
    kept_moments = moments(train.optimiser, autoencoder)
    if judge is not None:
        kept_moments += moments(train.discriminator, judge)
    f = config.model.factor
    counts = {"autoencoder": autoencoder, "discriminator": judge, "perceptual": perceptual}
    return Estimate(
        config=name,
        stage="autoencoder",
        image_size=size,
        latent=(config.model.raw_channels, size[0] // f, size[1] // f),
        parameters={part: memory.parameters([module]) for part, module in counts.items() if module is not None},
        samples=train.batch * train.accumulate,
        phases=tuple(phases),
        memory=memory.memory_of([autoencoder, judge], [autoencoder], [perceptual], kept_moments, kept),
        encoding_operations=flops.encode(config.model, size),
        minutes=train.minutes,
        preview_every=train.preview_every,
        save_every=train.save_every,
    )


def measured_first_stage(account: Estimate, config: AutoencoderRun, means: Means) -> Estimate:
    """The account with the times of this machine. Raises UserError where measuring would take too long."""
    peak = measure.arithmetic_peak(means.workers.device, config.train.precision)
    means = _within_reason(account, peak, means)
    phases = [
        replace(phase, timing=measure.time_first_stage(config, phase.name, means.data, means.steps, means.workers))  # type: ignore[arg-type]
        for phase in account.phases
    ]
    phases = _afforded(phases, [steps for _, steps in _line_ups(config)], config.train.minutes)
    return replace(account, phases=tuple(phases), peak=peak, device=describe(means.workers.device).device)


def _line_ups(config: AutoencoderRun) -> list[tuple[work.Stage1Step, int]]:
    """Who plays in how many steps; at most, where the run is of minutes."""
    train = config.train
    return list(work.phases(config.loss.adversarial, train.steps if train.minutes is None else measure.NEVER))


# ---- stage 2


def second_stage(config: DiffusionRun, first: LatentDiffusion, name: str, sampling_steps: int) -> Estimate:
    """The account of `sfumato train diffusion` on this first stage, nothing measured; images by all samplers."""
    check_sizes(config, first)
    train, size = config.train, height_width(config.data)
    second, latent = described(config), first.latent_shape_of(size)
    with torch.device("meta"):
        conditioner = memory.build_unwritten(config.conditioner)
        spec = ConditionSpec() if conditioner is None else conditioner.spec
        denoiser = build_denoiser(config.denoiser, latent[0], spec)
    kept = memory.second_stage_activations(
        second, latent, spec, train.batch, half(train.precision), train.checkpointing
    )
    autoencoder, learning = first.autoencoder, [part for part in (denoiser, conditioner) if part is not None]
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
        memory=memory.memory_of(learning, learning, [autoencoder], moments(train.optimiser, *learning), kept),
        sample_costs=tuple(_images(second, first, size, spec, sampling_steps)),
        encoding_operations=encodings(config) * flops.encode(first.config.autoencoder, size),
        minutes=train.minutes,
        preview_every=train.preview_every,
        save_every=train.save_every,
    )


def measured_second_stage(account: Estimate, config: DiffusionRun, first: LatentDiffusion, means: Means) -> Estimate:
    """The account with the times of this machine. Raises UserError where measuring would take too long."""
    precision = config.train.precision
    peak = measure.arithmetic_peak(means.workers.device, precision)
    means = _within_reason(account, peak, means)
    first = first.to(means.workers.device)
    timing, model = measure.time_second_stage(config, first, means.data, means.steps, means.workers, means.metadata)
    encoding = (
        measure.encoding_seconds(first, means.data, precision) * encodings(config) * (2 if config.mirrored else 1)
    )
    call, decoding = measure.drawing_seconds(model, precision)
    sample_costs = [replace(p, seconds=p.calls * call + decoding) for p in account.sample_costs]
    return replace(
        account,
        phases=tuple(_afforded([replace(account.phases[0], timing=timing)], [measure.NEVER], config.train.minutes)),
        peak=peak,
        device=describe(means.workers.device).device,
        encoding_seconds=encoding,
        sample_costs=tuple(sample_costs),
    )


def encodings(config: DiffusionRun) -> int:
    """How often each image is encoded, whole and with holes."""
    return 1 if config.conditions.mask is None else 1 + config.conditions.mask.variants


def described(config: DiffusionRun) -> DiffusionConfig:
    """The second stage that a run trains."""
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
    """By every sampler that can take so many steps on the configured schedule."""
    schedule = build_schedule(config.schedule)
    guided = config.condition_dropout > 0
    found = []
    for name, facts in SAMPLERS.items():
        try:
            calls = work.network_calls(facts.config(), schedule, steps)  # type: ignore[arg-type]  # one of the union
        except (UserError, ValueError):
            continue  # the sampler or its grid is not made for this schedule
        operations = work.image(first.config.autoencoder, config, size, spec, calls, guided)
        found.append(SampleCost(name, steps, calls, operations))
    return found


def _afforded(phases: list[Phase], most: list[int], minutes: float | None) -> list[Phase]:
    """Timed phases with the steps that the minutes buy, those they do not reach left out; as they are without."""
    if minutes is None:
        return phases
    each = [phase.timing.step for phase in phases if phase.timing is not None]
    counts = bought(most, each, 60 * minutes)
    return [replace(phase, steps=count) for phase, count in zip(phases, counts, strict=True) if count]


def _within_reason(account: Estimate, peak: float, means: Means) -> Means:
    """With fewer steps where there is not the time for all. Raises UserError where it is not enough for two."""
    step = account.samples * max(phase.work.total for phase in account.phases) / (USUAL * peak) * len(account.phases)
    steps = min(means.steps, int(PATIENCE / step) - measure.WARM_UP)
    if steps < min(2, means.steps):
        raise UserError(
            f"a step of {account.config} would take about {step:.0f} s here, too long to measure: give --no-measure "
            "for the account without times, or a smaller train.batch"
        )
    return replace(means, steps=steps)
