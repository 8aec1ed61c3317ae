"""Stage 1: the loop that trains an autoencoder with perceptual and patch-adversarial losses (section 3.1, App. G).

One forward pass of the autoencoder serves both players. The generator's step sees the discriminator frozen, the
discriminator's step sees the reconstruction detached: neither leaves gradients in the other.
"""

import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Self

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from sfumato import rng
from sfumato.autoencoder import losses
from sfumato.autoencoder.bottleneck import Encoding, code_counts, kmeans, revive_dead_codes
from sfumato.autoencoder.discriminator import PatchDiscriminator, frozen
from sfumato.autoencoder.losses import AdversarialConfig, LogitAverages, LossConfig
from sfumato.autoencoder.model import Autoencoder, AutoencoderConfig, VQConfig
from sfumato.autoencoder.perceptual import FeatureDistance, build_perceptual
from sfumato.data.dataset import Dataset
from sfumato.data.loader import Loader
from sfumato.data.table import DataConfig
from sfumato.engine.precision import Precision, autocast
from sfumato.engine.training import for_training
from sfumato.schema import Schema
from sfumato.training import ema
from sfumato.training.batches import open_batches
from sfumato.training.data import HeldOut, height_width
from sfumato.training.log import RunLog
from sfumato.training.optim import (
    OptimiserConfig,
    build_optimiser,
    clip_,
    gradients_norm,
    learning_rate,
    read,
    set_rate,
)
from sfumato.training.run import RunFolder, interruptible
from sfumato.training.start import start_first
from sfumato.training.state import TrainState
from sfumato.training.steps import check_progress, count_step, share_done
from sfumato.training.workers import Workers

Preview = Callable[[Autoencoder, int], Mapping[str, float | list[float]]]
"""Given the averaged autoencoder and the step, draws what there is to see and returns numbers for the log."""

Export = Callable[[Autoencoder, TrainState], None]
"""Writes the model folder of the averaged autoencoder."""


class AutoencoderTraining(Schema):
    """How long and how; a step sees batch · accumulate · processes images."""

    steps: int = Field(100_000, ge=1)
    minutes: float | None = Field(None, gt=0)
    """Train for so long instead of `steps`: the learning rate follows the clock, which counts the steps alone."""
    part: Literal["whole", "decoder"] = "whole"
    """decoder: encoder and bottleneck stay as `start` has them, so that second stages that know these latents go on
    working; `sfumato give-decoder` gives them the new decoder."""
    batch: int = Field(16, ge=1)
    accumulate: int = Field(1, ge=1)
    precision: Precision = "auto"
    optimiser: OptimiserConfig = OptimiserConfig()
    discriminator: OptimiserConfig = OptimiserConfig()
    ema_decay: float = Field(0.999, ge=0, lt=1)
    seed: int = 0
    log_every: int = Field(50, ge=1)
    preview_every: int = Field(1000, ge=1)
    preview_images: int = Field(64, ge=1)
    save_every: int = Field(1000, ge=1)
    workers: int = Field(2, ge=0)
    max_skipped: int = Field(20, ge=1)
    """Stop after so many steps in a row whose gradients were not finite."""


class AutoencoderRun(Schema):
    """The configuration of `sfumato train autoencoder`."""

    model: AutoencoderConfig
    data: DataConfig
    held_out: HeldOut = HeldOut()
    loss: LossConfig = LossConfig()
    train: AutoencoderTraining = AutoencoderTraining()
    start: Path | None = None
    """A model folder or run whose autoencoder's weights to begin with, instead of drawn ones."""

    @model_validator(mode="after")
    def _factor_divides_size(self) -> Self:
        if self.model.bottleneck.kind == "pixels":
            raise ValueError("model.bottleneck.kind pixels has nothing to train: give --autoencoder pixels to stage 2")
        height, width = height_width(self.data)
        if height % self.model.factor or width % self.model.factor:
            raise ValueError(
                f"data.size {height}x{width} is not a multiple of f = {self.model.factor}, "
                "which model.channel_multipliers sets; change either"
            )
        if self.train.part == "decoder" and self.start is None:
            raise ValueError("train.part is decoder, and start names no autoencoder to take the encoder from: give it")
        return self


@dataclass(frozen=True)
class Players:
    """The networks of stage 1; `log_variance` holds the learned output variance as one parameter."""

    autoencoder: Autoencoder
    discriminator: PatchDiscriminator | None
    perceptual: FeatureDistance | None
    log_variance: nn.ParameterList
    counts: "CodeCounts"


class CodeCounts(nn.Module):
    """How often each code was used: in this epoch, and since the last revival. Buffers, to survive a resume."""

    epoch: Tensor
    recent: Tensor

    def __init__(self, codes: int) -> None:
        super().__init__()
        self.register_buffer("epoch", torch.zeros(codes, dtype=torch.long))
        self.register_buffer("recent", torch.zeros(codes, dtype=torch.long))

    def add(self, indices: Tensor, workers: Workers) -> None:
        """Counts the codes of a batch, all processes' parts of it."""
        counts = workers.total(code_counts(indices, len(self.epoch)))
        self.epoch += counts
        self.recent += counts


def unwritten(config: AutoencoderRun) -> Autoencoder:
    """The run's autoencoder before its `start`, with what of it learns in this run."""
    autoencoder = Autoencoder(config.model)
    if config.train.part == "decoder":
        autoencoder.freeze_latents()
    return autoencoder


def build_players(config: AutoencoderRun, workers: Workers) -> Players:
    """The networks with weights drawn from the run's seed."""
    adversarial, bottleneck = config.loss.adversarial, config.model.bottleneck
    with rng.seeded(config.train.seed, "weights", "autoencoder", device=torch.device("cpu")):
        autoencoder = unwritten(config)
        if config.start is not None:
            start_first(autoencoder, config.start)
        discriminator = PatchDiscriminator(
            config.model.image_channels, adversarial.channels, adversarial.layers, adversarial.norm
        )
    perceptual = build_perceptual(config.loss.perceptual)
    return Players(
        autoencoder=workers.place(autoencoder),
        discriminator=workers.place(discriminator) if adversarial.weight > 0 else None,
        perceptual=workers.place(perceptual) if perceptual is not None else None,
        log_variance=workers.place(nn.ParameterList([torch.zeros(())] if config.loss.output_variance else [])),
        counts=workers.place(CodeCounts(bottleneck.codes if isinstance(bottleneck, VQConfig) else 0)),
    )


def generator_losses(
    config: LossConfig,
    players: Players,
    image: Tensor,
    output: Tensor,
    encoding: Encoding,
    strength: float,
    workers: Workers,
) -> tuple[Tensor, dict[str, Tensor]]:
    """What the autoencoder minimises, and its terms for the log.

    image, output (B, C, H, W); `strength` in [0, 1] scales the adversarial term, which is not computed at 0.
    """
    error = losses.reconstruction(image, output, config.pixel)
    terms = {"reconstruction": error.mean()}
    if players.perceptual is not None:
        distance = players.perceptual(output, image)
        terms["perceptual"] = distance.mean()
        error = losses.with_perceptual(error, distance, config.perceptual_weight)
    variance = next(iter(players.log_variance), None)
    nll = losses.negative_log_likelihood(error, config.reduction, variance)
    terms |= {"nll": nll, "regulariser": encoding.regulariser}
    kind: Literal["kl", "vq"] = "kl" if players.autoencoder.variational else "vq"
    total = nll + losses.regularisation(config, kind, encoding.regulariser, image[0].numel())
    if players.discriminator is not None and strength > 0:
        with frozen(players.discriminator):
            adversarial = losses.generator_loss(players.discriminator(output))
        weight = torch.ones((), device=nll.device)
        if config.adversarial.adaptive:
            last = players.autoencoder.last_layer()
            weight = losses.adaptive_weight(nll, adversarial, last, config.adversarial.max_weight, workers.average)
        total = total + config.adversarial.weight * strength * weight * adversarial
        terms |= {"adversarial": adversarial, "adaptive_weight": weight}
    if variance is not None:
        terms["log_variance"] = variance
    return total, {name: value.detach() for name, value in terms.items()}


def discriminator_losses(
    config: AdversarialConfig,
    discriminator: PatchDiscriminator,
    image: Tensor,
    output: Tensor,
    averages: LogitAverages,
) -> tuple[Tensor, dict[str, Tensor]]:
    """What the discriminator minimises, and its terms for the log; the reconstruction `output` is detached here."""
    real, fake = discriminator(image), discriminator(output.detach())
    total = losses.discriminator_loss(real, fake, config.loss)
    terms = {"discriminator": total, "logits_real": real.float().mean(), "logits_fake": fake.float().mean()}
    if config.lecam > 0:
        total = total + config.lecam * losses.lecam(real, fake, averages)
    return total, {name: value.detach() for name, value in terms.items()}


def train_autoencoder(
    config: AutoencoderRun,
    dataset: Dataset,
    folder: RunFolder,
    preview: Preview,
    export: Export,
    workers: Workers | None = None,
) -> TrainState:
    """Trains, or goes on where the run in `folder` stopped; returns the final state.

    Raises UserError if the folder holds another run, the disk fills up, or the loss stays non-finite.
    """
    train, workers = config.train, workers or Workers()
    players = build_players(config, workers)
    autoencoder, discriminator = players.autoencoder, players.discriminator
    shadow = ema.average_of(autoencoder)
    learning = [p for p in (*autoencoder.parameters(), *players.log_variance.parameters()) if p.requires_grad]
    judging = [] if discriminator is None else list(discriminator.parameters())
    state = TrainState(
        modules={
            "autoencoder": autoencoder,
            "ema": shadow,
            "log_variance": players.log_variance,
            "counts": players.counts,
        },
        optimisers={"autoencoder": build_optimiser(train.optimiser, autoencoder, players.log_variance)},
    )
    if discriminator is not None:
        state.modules["discriminator"] = discriminator
        state.optimisers["discriminator"] = build_optimiser(train.discriminator, discriminator)
    folder.resume(state)
    source = dataset.fingerprint()
    changed = state.notes.get("source", source) != source
    state.notes["source"] = source
    for_training(autoencoder)

    step_images = train.batch * train.accumulate * workers.world
    epoch_steps = max(1, len(dataset) // step_images)
    precision = autocast(workers.device, train.precision)
    seen_before, stop = state.images, False
    with (
        open_batches(dataset, train, state, workers) as data,
        RunLog(folder.path, "autoencoder", state.step, share_done(train, state), workers.leads) as log,
        interruptible() as interrupt,
    ):
        if changed:
            log.say("the data has changed since the run began: from here on it is another run than an undisturbed one")
        if state.step == 0:
            _start_codebook(config, players, shadow, dataset, precision, workers)
        while (done := share_done(train, state)) < 1 and not stop:
            t_start = time.monotonic()
            set_rate(state.optimisers["autoencoder"], learning_rate(train.optimiser, state.step, done))
            strength = losses.adversarial_strength(config.loss.adversarial, state.step)
            judges = discriminator is not None and losses.discriminator_trains(config.loss.adversarial, state.step)
            averages = LogitAverages(*state.notes.get("logits", (0.0, 0.0)))
            terms: dict[str, Tensor] = {}
            latents: list[Tensor] = []
            for micro, noise in enumerate(_posterior_noise(config, state.step, workers)):
                image = next(data).to(workers.device).images.contiguous(memory_format=torch.channels_last)
                with precision, rng.seeded(train.seed, "dropout", state.step, micro, workers.rank, device=image.device):
                    encoding = autoencoder.encode(image, noise)
                    output = autoencoder.decode(encoding.z, quantize=False)
                    total, found = generator_losses(config.loss, players, image, output, encoding, strength, workers)
                (total / train.accumulate).backward()
                if judges and discriminator is not None:
                    with precision:
                        total, more = discriminator_losses(
                            config.loss.adversarial, discriminator, image, output, averages
                        )
                    (total / train.accumulate).backward()
                    found |= more
                for name, value in found.items():
                    terms[name] = terms.get(name, 0) + value.float() / train.accumulate
                if encoding.indices is not None:
                    players.counts.add(encoding.indices, workers)
                    if train.part == "whole":  # the codes of a decoder alone stay as they are
                        latents.append(encoding.moments.detach())

            workers.average(p.grad for p in (*learning, *judging) if p.grad is not None)
            norms = [gradients_norm(learning), *([gradients_norm(judging)] if judges else [])]
            reconstruction, norm, *judging_norm = read(terms["reconstruction"], *norms)
            finite = all(math.isfinite(each) for each in (norm, *judging_norm))
            if finite:
                clip_(learning, norm, train.optimiser.clip_norm)
                state.optimisers["autoencoder"].step()
                ema.update(shadow, autoencoder, ema.decay_at(state.step - state.skipped + 1, train.ema_decay))
            if finite and judges:
                rate = learning_rate(train.discriminator, state.step, done)
                set_rate(state.optimisers["discriminator"], rate)
                clip_(judging, judging_norm[0], train.discriminator.clip_norm)
                state.optimisers["discriminator"].step()
                _note_logits(config.loss.adversarial, averages, terms, state, workers)
            for optimiser in state.optimisers.values():
                optimiser.zero_grad(set_to_none=True)
            if finite and latents:
                _mend_codebook(config, players, shadow, latents, state, workers)
            count_step(state, finite, step_images, workers.mean(time.monotonic() - t_start))
            done = share_done(train, state)
            check_progress(state, train.max_skipped)

            if state.step % train.log_every == 0 or done == 1:
                values = {name: value.item() for name, value in terms.items()}
                values |= {"gradient_norm": norm, "strength": strength, "stall_seconds": data.stall_seconds}
                values |= {"images": state.images, "seconds": state.seconds, "skipped": state.skipped}
                if state.step % epoch_steps < train.log_every and len(players.counts.epoch):
                    values["codes_used"] = (players.counts.epoch > 0).float().mean().item()
                    players.counts.epoch.zero_()
                log.record(state.step, values)
            log.advance(state.step, done, state.images - seen_before, f"L {reconstruction:.4f}")
            last = done == 1
            stop = workers.any(interrupt.wanted)  # read once a step: all processes stop after the same one
            if workers.leads and (state.step % train.preview_every == 0 or last):
                log.record(state.step, preview(_averaged(shadow), state.step))
            if workers.leads and (state.step % train.save_every == 0 or last or stop):
                export(_averaged(shadow), state)  # before the state: killed in between, the run does this step again
                folder.save(state)
        if stop and share_done(train, state) < 1:
            log.say(f"stopped after step {state.step}; the same command goes on from there")
    return state


def _averaged(shadow: nn.Module) -> Autoencoder:
    assert isinstance(shadow, Autoencoder)
    return shadow


def _posterior_noise(config: AutoencoderRun, step: int, workers: Workers) -> list[Tensor | None]:
    """N(0, 1) of the latent's shape for each micro-batch: this rank's rows of the draw for the step's whole batch."""
    train, f = config.train, config.model.factor
    if config.model.bottleneck.kind != "kl":
        return [None] * train.accumulate
    H, W = height_width(config.data)
    rows = (train.accumulate, workers.world, train.batch)
    g = rng.generator(train.seed, "posterior", step)
    drawn = torch.randn(*rows, config.model.raw_channels, H // f, W // f, generator=g)
    return list(drawn[:, workers.rank].to(workers.device, non_blocking=True))


def _note_logits(
    config: AdversarialConfig, averages: LogitAverages, terms: dict[str, Tensor], state: TrainState, workers: Workers
) -> None:
    """Keeps the running means of the discriminator's logits, which LeCam needs."""
    if config.lecam > 0:
        real, fake = terms["logits_real"].clone(), terms["logits_fake"].clone()
        workers.average([real, fake])
        averages = averages.updated(real, fake, config.lecam_decay)
        state.notes["logits"] = [averages.real, averages.fake]


@torch.no_grad()
def _start_codebook(
    config: AutoencoderRun,
    players: Players,
    shadow: nn.Module,
    dataset: Dataset,
    precision: torch.autocast,
    workers: Workers,
) -> None:
    """Sets the codes to cluster means of the first step's latents; every rank finds the same."""
    train, bottleneck, quantize = config.train, config.model.bottleneck, players.autoencoder.quantize
    if not isinstance(bottleneck, VQConfig) or quantize is None or not bottleneck.kmeans_init or config.start:
        return
    images = train.batch * train.accumulate * workers.world
    with Loader(dataset, images, train.seed, workers=0) as data:
        parts = next(data).to(workers.device).images.split(train.batch)
    with precision, rng.seeded(train.seed, "dropout", "kmeans", device=workers.device):
        latents = torch.cat([players.autoencoder.encode(part).moments for part in parts])
    codes = kmeans(latents, bottleneck.codes, rng.generator(train.seed, "kmeans"))
    for network in (players.autoencoder, _averaged(shadow)):
        assert network.quantize is not None
        network.quantize.embedding.weight.copy_(codes)


@torch.no_grad()
def _mend_codebook(
    config: AutoencoderRun,
    players: Players,
    shadow: nn.Module,
    latents: list[Tensor],
    state: TrainState,
    workers: Workers,
) -> None:
    """Every `revive_every` steps moves the codes that nothing used since onto latents of the step's whole batch."""
    bottleneck = config.model.bottleneck
    if not isinstance(bottleneck, VQConfig) or not bottleneck.revive_every:
        return
    if (state.step + 1) % bottleneck.revive_every:
        return
    live, averaged = players.autoencoder.quantize, _averaged(shadow).quantize
    assert live is not None
    assert averaged is not None
    weight = live.embedding.weight
    g = rng.generator(config.train.seed, "revive", state.step)
    whole = torch.cat([workers.gather(part) for part in latents])
    renewed, dead = revive_dead_codes(weight, players.counts.recent, whole, g)
    weight.copy_(renewed)
    averaged.embedding.weight[dead] = renewed[dead]
    for value in state.optimisers["autoencoder"].state[weight].values():
        if value.shape == renewed.shape:
            value[dead] = 0
    players.counts.recent.zero_()
