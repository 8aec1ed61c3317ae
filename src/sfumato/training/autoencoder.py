"""Stage 1: the loop that trains an autoencoder with perceptual and patch-adversarial losses (section 3.1, App. G).

One forward pass of the autoencoder serves both networks. The discriminator is frozen in the generator's step and the
reconstruction is detached in the discriminator's step: neither step leaves gradients in the other network.
"""

import math
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial

import torch
from torch import Tensor, nn

from sfumato import rng
from sfumato.autoencoder import losses
from sfumato.autoencoder.alignment import alignment
from sfumato.autoencoder.bottleneck import Encoding
from sfumato.autoencoder.discriminator import PatchDiscriminator
from sfumato.autoencoder.latent_changes import NO_CHANGE, LatentChange, choose_geometry, choose_kept
from sfumato.autoencoder.losses import AdversarialConfig, LogitAverages
from sfumato.autoencoder.model import Autoencoder, VQConfig
from sfumato.autoencoder.perceptual import build_perceptual
from sfumato.data.dataset import Dataset, Example
from sfumato.engine.precision import autocast
from sfumato.engine.training import for_training
from sfumato.training.alignment import build_alignment
from sfumato.training.autoencoder_run import AutoencoderRun
from sfumato.training.averages import ema
from sfumato.training.codebook import CodeCounts, report_dead_codes, revive_codes, start_codebook
from sfumato.training.optim import (
    build_optimiser,
    clip_,
    gradients_norm,
    learning_rate,
    read,
    set_rate,
)
from sfumato.training.run import RunFolder
from sfumato.training.session import Periodic, Session, open_session
from sfumato.training.shares import Sharing
from sfumato.training.source import source_key
from sfumato.training.stage1_losses import (
    AdversarialPhase,
    AutoencoderPass,
    DiscriminatorPass,
    Passes,
    Stage1Modules,
    discriminator_losses,
    generator_losses,
)
from sfumato.training.start import start_first
from sfumato.training.state import TrainState
from sfumato.training.workers import Workers

Preview = Callable[[Autoencoder, int], Mapping[str, float | list[float]]]
"""Called with the averaged autoencoder and the step: writes preview images and returns numbers for the log."""

Export = Callable[[Autoencoder, TrainState], None]
"""Writes the model folder of the averaged autoencoder."""


def untrained_autoencoder(config: AutoencoderRun) -> Autoencoder:
    """The run's autoencoder with random weights, before `start` is loaded; parts that this run does not train are
    frozen."""
    autoencoder = Autoencoder(config.model)
    if config.train.part == "decoder":
        autoencoder.freeze_latents()
    return autoencoder


def build_stage1(config: AutoencoderRun, workers: Workers) -> Stage1Modules:
    """The networks, initialised from the run's seed or from `start`."""
    adversarial = config.loss.adversarial
    with rng.seeded(config.train.seed, "weights", "autoencoder", device=torch.device("cpu")):
        autoencoder = untrained_autoencoder(config)
        if config.start is not None:
            start_first(autoencoder, config.start, keep_latents=config.train.part == "decoder")
        discriminator = PatchDiscriminator(
            config.model.image_channels, adversarial.channels, adversarial.layers, adversarial.norm
        )
    modules = stage1_around(config, workers.place(autoencoder), workers)
    return replace(
        modules,
        discriminator=workers.place(discriminator) if adversarial.weight > 0 else None,
        alignment=build_alignment(config.loss.alignment, config.model.raw_channels, config.train.seed, workers),
    )


def stage1_around(config: AutoencoderRun, autoencoder: Autoencoder, workers: Workers) -> Stage1Modules:
    """An autoencoder with what its losses need, but for the discriminator and the alignment."""
    bottleneck, perceptual = config.model.bottleneck, build_perceptual(config.loss.perceptual)
    return Stage1Modules(
        autoencoder=autoencoder,
        discriminator=None,
        perceptual=workers.place(perceptual) if perceptual is not None else None,
        log_variance=workers.place(nn.ParameterList([torch.zeros(())] if config.loss.output_variance else [])),
        counts=workers.place(CodeCounts(bottleneck.codes if isinstance(bottleneck, VQConfig) else 0)),
    )


def forward_backward(
    config: AutoencoderRun,
    modules: Stage1Modules,
    passes: Passes,
    image: Tensor,
    noise: Tensor | None,
    dropout: tuple[str | int, ...],
    phase: AdversarialPhase,
    workers: Workers,
    change: LatentChange = NO_CHANGE,
) -> tuple[Encoding, dict[str, Tensor]]:
    """Adds a micro-batch's gradients to both networks; returns its encoding and the terms of its losses.

    image (B, C, H, W); noise of the latent's shape, None for VQ; `dropout` names the random stream of dropout;
    `change` is what regularises the latent.
    """
    train, factor = config.train, config.model.factor
    image = change.input(image, factor)
    target = change.target(image, factor)
    precision = autocast(workers.device, train.precision)
    with precision, rng.seeded(train.seed, *dropout, device=image.device):
        encoding, output, mapped = passes.autoencoder(image, noise, change)
        aligned = None
        if modules.alignment is not None:
            aligned = alignment(config.loss.alignment, encoding.z, mapped, modules.alignment.features(image))
        total, terms = generator_losses(
            config.loss, modules, target, output, encoding, phase.strength, workers, image[0].numel(), aligned
        )
    (total / train.accumulate).backward()
    if phase.discriminator_trains and passes.discriminator is not None:
        with precision:
            real, fake = passes.discriminator(target, output)
            total, more = discriminator_losses(config.loss.adversarial, real, fake, phase.averages)
        (total / train.accumulate).backward()
        terms |= more
    return encoding, terms


def train_autoencoder(
    config: AutoencoderRun,
    dataset: Dataset,
    folder: RunFolder,
    preview: Preview,
    export: Export,
    workers: Workers | None = None,
) -> TrainState:
    """Trains, or resumes the run in `folder`; returns the final state.

    Raises UserError if the folder holds another run, the disk fills up, or the loss stays non-finite.
    """
    train, workers = config.train, workers or Workers()
    modules = build_stage1(config, workers)
    shadow = ema.average_of(modules.autoencoder)
    state = _train_state(config, modules, shadow, workers.sharing)
    # data at the same path may have grown, which is logged; at another path it must be the same
    folder.resume(state, source_key(dataset), strict=folder.data_moved)
    for_training(modules.autoencoder)
    tasks = [Periodic(train.preview_every, lambda: preview(shadow, state.step))]
    save = partial(export, shadow, state)
    with open_session("autoencoder", dataset, train, state, folder, workers, tasks, save) as session:
        if state.step == 0:
            _start_codebook(config, modules, shadow, dataset, workers)
        passes = _wrapped(modules, workers)
        while session.goes_on():
            t_start, done = time.monotonic(), session.done
            phase = _adversarial_phase(config.loss.adversarial, state)
            micro_terms: list[dict[str, Tensor]] = []
            codes: list[tuple[Tensor, Tensor]] = []
            h, w = (side // config.model.factor for side in session.next_size)
            for micro, noise in enumerate(posterior_noise(config, (h, w), state.step, workers)):
                image = next(session.data).to(workers.device).images.contiguous(memory_format=torch.channels_last)
                dropout = ("dropout", state.step, micro, workers.rank)
                with workers.accumulating(micro == train.accumulate - 1, passes.autoencoder, passes.discriminator):
                    change = latent_change(config, state.step, micro, workers, (h, w))
                    encoding, terms = forward_backward(
                        config, modules, passes, image, noise, dropout, phase, workers, change
                    )
                micro_terms.append(terms)
                if encoding.indices is not None:
                    codes.append((encoding.indices, encoding.moments.detach()))

            terms = mean_terms(micro_terms, workers)
            numbers, norms = _read(terms, modules, phase)
            finite = all(math.isfinite(norm) for norm in norms.values())
            if finite:
                _optimizer_steps(config, modules, shadow, norms, done, state)
                _note_logits(config.loss.adversarial, phase, numbers, state)
            for optimiser in state.optimisers.values():
                optimiser.zero_grad(set_to_none=True)
            _count_codes(config, modules, shadow, codes, finite, state, workers)
            session.count(finite, time.monotonic() - t_start)

            values = {**numbers, "gradient_norm": norms["autoencoder"], "strength": phase.strength}
            if session.log_due:
                values |= _report_codes(config, modules, dataset, session, state, workers)
            session.record(values, f"L {numbers['reconstruction']:.4f}")
            session.finish()
    return state


def _train_state(
    config: AutoencoderRun, modules: Stage1Modules, shadow: Autoencoder, sharing: Sharing | None
) -> TrainState:
    """The initial state of a run of stage 1."""
    train, autoencoder, discriminator = config.train, modules.autoencoder, modules.discriminator
    state = TrainState(
        modules={
            "autoencoder": autoencoder,
            "ema": shadow,
            "log_variance": modules.log_variance,
            "counts": modules.counts,
        },
        optimisers={
            "autoencoder": build_optimiser(train.optimiser, *modules.trained, sharing=sharing),
        },
    )
    if modules.alignment is not None:
        state.modules["alignment"] = modules.alignment.mapping
    if discriminator is not None:
        state.modules["discriminator"] = discriminator
        state.optimisers["discriminator"] = build_optimiser(train.discriminator, discriminator, sharing=sharing)
    return state


def _wrapped(modules: Stage1Modules, workers: Workers) -> Passes:
    """Both forward passes, wrapped for several processes; to be called with the initial weights, which rank 0
    broadcasts."""
    discriminator = modules.discriminator
    mapping = None if modules.alignment is None else modules.alignment.mapping
    return Passes(
        workers.wrap(AutoencoderPass(modules.autoencoder, modules.log_variance, mapping)),
        None if discriminator is None else workers.wrap(DiscriminatorPass(discriminator)),
    )


def _adversarial_phase(config: AdversarialConfig, state: TrainState) -> AdversarialPhase:
    """The phase of the next step."""
    return AdversarialPhase(
        losses.adversarial_strength(config, state.step),
        losses.discriminator_trains(config, state.step),
        LogitAverages(*state.notes.get("logits", (0.0, 0.0))),
    )


def _parameters(modules: Stage1Modules) -> list[nn.Parameter]:
    """The parameters that the generator's optimizer updates."""
    return [parameter for each in modules.trained for parameter in each.parameters() if parameter.requires_grad]


def mean_terms(micro_terms: list[dict[str, Tensor]], workers: Workers) -> dict[str, Tensor]:
    """The terms of the losses, 0-d, as means over micro-batches and processes."""
    terms = {name: torch.zeros((), device=workers.device) for name in micro_terms[0]}
    for one in micro_terms:
        for name, value in one.items():
            terms[name] = terms[name] + value.float() / len(micro_terms)
    workers.average(terms.values())
    return terms


def _read(
    terms: dict[str, Tensor], modules: Stage1Modules, phase: AdversarialPhase
) -> tuple[dict[str, float], dict[str, float]]:
    """The terms, and the norms of the gradients by network, as numbers: the only wait for the device in a step."""
    norms = {"autoencoder": gradients_norm(_parameters(modules))}
    if phase.discriminator_trains and modules.discriminator is not None:
        norms["discriminator"] = gradients_norm(modules.discriminator.parameters())
    values = read(*terms.values(), *norms.values())
    split = len(terms)
    return dict(zip(terms, values[:split], strict=True)), dict(zip(norms, values[split:], strict=True))


def _optimizer_steps(
    config: AutoencoderRun,
    modules: Stage1Modules,
    shadow: Autoencoder,
    norms: dict[str, float],
    done: float,
    state: TrainState,
) -> None:
    """Clips and steps each network that has a norm, the autoencoder first, and updates the average."""
    train = config.train
    optimiser = state.optimisers["autoencoder"]
    set_rate(optimiser, learning_rate(train.optimiser, state.step, done))
    clip_(_parameters(modules), norms["autoencoder"], train.optimiser.clip_norm)
    optimiser.step()
    ema.update(shadow, modules.autoencoder, ema.decay_at(state.step - state.skipped + 1, train.ema_decay))
    if "discriminator" in norms and modules.discriminator is not None:
        optimiser = state.optimisers["discriminator"]
        set_rate(optimiser, learning_rate(train.discriminator, state.step, done))
        clip_(modules.discriminator.parameters(), norms["discriminator"], train.discriminator.clip_norm)
        optimiser.step()


def posterior_noise(
    config: AutoencoderRun, latent: tuple[int, int], step: int, workers: Workers
) -> list[Tensor | None]:
    """N(0, 1) of the shape of latents of (h, w) for each micro-batch: this rank's rows of what is sampled for the
    step's whole batch."""
    train = config.train
    if config.model.bottleneck.kind != "kl":
        return [None] * train.accumulate
    rows = (train.accumulate, workers.world, train.batch)
    own = rng.OwnRows(rng.generator(train.seed, "posterior", step), rows, workers.rank)
    return list(own((config.model.raw_channels, *latent)).to(workers.device, non_blocking=True))


def latent_change(
    config: AutoencoderRun, step: int, micro: int, workers: Workers, latent: tuple[int, int] | None = None
) -> LatentChange:
    """The regularising change of a micro-batch of latents of (h, w), by default of the configured size: one scale and
    turn, and share of frequencies, for the whole step, this rank's rows of the noise."""
    train, noise, latent = config.train, config.loss.latent_noise, latent or config.latent_size
    g = rng.generator(train.seed, "latent geometry", step)
    geometry = choose_geometry(config.loss.equivariance, latent, g)
    kept = choose_kept(config.loss.spectral, rng.generator(train.seed, "latent frequencies", step))
    if kept is not None:
        geometry = replace(geometry, kept=kept)
    if noise.gamma == 0:
        return geometry
    g = rng.generator(train.seed, "latent noise", step, micro)
    rows = (workers.world, train.batch)
    tau = torch.rand(*rows, generator=g) * (torch.rand(*rows, generator=g) < noise.share)
    own = rng.OwnRows(g, (1, *rows), workers.rank)
    epsilon = own((config.model.latent_channels, *_square(latent)))[0]
    device = workers.device
    return replace(geometry, noise_share=tau[workers.rank].to(device), noise=epsilon.to(device), gamma=noise.gamma)


def _square(size: tuple[int, int]) -> tuple[int, int]:
    """A size that a latent fits into however it is turned."""
    return max(size), max(size)


def _note_logits(
    config: AdversarialConfig, phase: AdversarialPhase, numbers: dict[str, float], state: TrainState
) -> None:
    """Stores the running means of the discriminator's logits in the state, for LeCam."""
    if config.lecam > 0 and "logits_real" in numbers:
        real, fake = (torch.tensor(numbers[name]) for name in ("logits_real", "logits_fake"))
        averages = phase.averages.updated(real, fake, config.lecam_decay)
        state.notes["logits"] = [averages.real, averages.fake]


def _start_codebook(
    config: AutoencoderRun, modules: Stage1Modules, shadow: Autoencoder, dataset: Dataset, workers: Workers
) -> None:
    """Initialises the codebook by k-means, if configured and the autoencoder is not a trained one."""
    bottleneck = config.model.bottleneck
    if isinstance(bottleneck, VQConfig) and bottleneck.kmeans_init and config.start is None:
        precision = autocast(workers.device, config.train.precision)
        start_codebook(bottleneck, config.train, modules.autoencoder, shadow, dataset, precision, workers)


def _count_codes(
    config: AutoencoderRun,
    modules: Stage1Modules,
    shadow: Autoencoder,
    codes: list[tuple[Tensor, Tensor]],
    finite: bool,
    state: TrainState,
    workers: Workers,
) -> None:
    """Counts the codes of a step, and revives the unused ones every `revive_every` steps if the step was finite.

    codes: for each micro-batch the indices (B, h, w), and the latents (B, C, h, w) that they quantise.
    """
    bottleneck = config.model.bottleneck
    if not isinstance(bottleneck, VQConfig):
        return
    modules.counts.add(torch.cat([indices for indices, _ in codes]), workers)
    due = bottleneck.revive_every and (state.step + 1) % bottleneck.revive_every == 0
    if due and finite and config.train.part == "whole":  # when only the decoder is trained, the codes stay fixed
        revive_codes(
            modules.autoencoder,
            shadow,
            modules.counts,
            [latents for _, latents in codes],
            state.optimisers["autoencoder"],
            rng.generator(config.train.seed, "revive", state.step),
            workers,
        )


def _report_codes(
    config: AutoencoderRun,
    modules: Stage1Modules,
    dataset: Dataset,
    session: Session[Example],
    state: TrainState,
    workers: Workers,
) -> dict[str, float]:
    """Logs a warning if the codebook is nearly dead; returns how many codes an epoch used that ended since the
    log's previous line."""
    report_dead_codes(config.model.bottleneck, modules.counts, state.step, session.done, session.log.say)
    train = config.train
    epoch_steps = max(1, len(dataset) // (train.batch * train.accumulate * workers.world))
    if not isinstance(config.model.bottleneck, VQConfig) or state.step % epoch_steps >= train.log_every:
        return {}
    return {"codes_used": modules.counts.used_in_epoch()}
