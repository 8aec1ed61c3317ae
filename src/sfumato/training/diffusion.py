"""Stage 2: the loop that trains a denoiser, and its conditioner with it, on cached latents (section 3.2, eq. 3)."""

import math
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal, Self

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from sfumato import rng, snapshots
from sfumato.autoencoder.model import Autoencoder
from sfumato.autoencoder.scaling import Scaling
from sfumato.conditioning.composite import Composite
from sfumato.conditioning.condition import Condition, Conditioner, Fields, select
from sfumato.conditioning.table import CompositeConfig, ConditionerConfig, NoneConfig
from sfumato.data.conditions.config import ConditionsConfig
from sfumato.data.dataset import LatentSource
from sfumato.data.table import DataConfig
from sfumato.denoiser.table import DenoiserConfig
from sfumato.diffusion import objective
from sfumato.diffusion.objective import Adaptation, ObjectiveConfig
from sfumato.diffusion.process import add_noise, network_time
from sfumato.diffusion.schedule import Schedule, ScheduleConfig
from sfumato.engine.precision import Precision, autocast
from sfumato.engine.recorded_step import recordable
from sfumato.engine.training import for_training
from sfumato.schema import Schema
from sfumato.training import ema
from sfumato.training.batches import open_batches
from sfumato.training.data import HeldOut, height_width
from sfumato.training.draws import Keep, draws_of_step
from sfumato.training.ema import PowerAverages
from sfumato.training.log import RunLog
from sfumato.training.micro import Micro, recorded
from sfumato.training.optim import (
    OptimiserConfig,
    build_optimiser,
    gradients_norm,
    learning_rate,
    read,
    set_rate,
)
from sfumato.training.run import RunFolder, interruptible
from sfumato.training.state import TrainState
from sfumato.training.steps import check_progress, count_step, share_done, take_step
from sfumato.training.workers import Workers

DROPOUT = 0.1


class EvaluationConfig(Schema):
    """A small evaluation while training: samples against held-out pictures; the best model is kept in `best`."""

    every: int = Field(0, ge=0)
    """Steps between two; 0 for none."""
    samples: int = Field(512, ge=2)
    steps: int = Field(20, ge=1)
    metric: Literal["fd", "kd"] = "kd"
    """kd is unbiased for few samples."""
    features: str = "efficientnet-lite0"


class DiffusionTraining(Schema):
    """How long and how; a step sees batch · accumulate · processes latents."""

    steps: int = Field(100_000, ge=1)
    minutes: float | None = Field(None, gt=0)
    """Train for so long instead of `steps`: the learning rate follows the clock, which counts the steps alone."""
    batch: int = Field(64, ge=1)
    accumulate: int = Field(1, ge=1)
    condition_dropout: float = Field(DROPOUT, ge=0, le=1)
    """How often a sample is trained without its condition, so that guidance works; 0 rules guidance out."""
    part_dropout: dict[str, float] = Field(default_factory=dict)
    """The same for single parts of a composite conditioner, by name and independently: for a guidance scale each."""
    precision: Precision = "auto"
    checkpointing: bool = False
    """Keep only the inputs of the denoiser's blocks and compute the rest again on the way back: less memory, the same
    numbers, about a third more time."""
    optimiser: OptimiserConfig = OptimiserConfig()
    ema_decay: float = Field(0.999, ge=0, lt=1)
    power_averages: PowerAverages | None = None
    """Also keeps averages whose width can be chosen after the training, see `sfumato average`."""
    seed: int = 0
    log_every: int = Field(50, ge=1)
    preview_every: int = Field(1000, ge=1)
    save_every: int = Field(1000, ge=1)
    workers: int = Field(1, ge=0)
    max_skipped: int = Field(20, ge=1)
    evaluation: EvaluationConfig = EvaluationConfig()


class DiffusionRun(Schema):
    """The configuration of `sfumato train diffusion`."""

    denoiser: DenoiserConfig
    conditioner: ConditionerConfig = NoneConfig()
    schedule: ScheduleConfig
    objective: ObjectiveConfig = ObjectiveConfig()
    data: DataConfig
    conditions: ConditionsConfig = ConditionsConfig()
    held_out: HeldOut = HeldOut()
    mirrored: bool = False
    """Cache each picture's mirror image too: not where left and right have a meaning."""
    train: DiffusionTraining = DiffusionTraining()
    start: Path | None = None
    """A model folder or run to go on from: its weights, tokenizer and scale of the latents instead of new ones."""

    @model_validator(mode="after")
    def _dropout_has_a_condition(self) -> Self:
        if self.conditioner.kind == "none" and self.train.condition_dropout not in (0, DROPOUT):
            raise ValueError("train.condition_dropout is set but conditioner.kind is none: there is nothing to drop")
        parts = self.conditioner.parts if isinstance(self.conditioner, CompositeConfig) else {}
        for name, rate in self.train.part_dropout.items():
            if name not in parts:
                told = f"conditioner.parts has {', '.join(parts)}" if parts else "conditioner.kind is not composite"
                raise ValueError(f"train.part_dropout names {name!r}, but {told}")
            if not 0 <= rate <= 1:
                raise ValueError(f"train.part_dropout.{name} is {rate:g}: give a share between 0 and 1")
        return self

    @model_validator(mode="after")
    def _evaluation_has_its_conditions(self) -> Self:
        if self.train.evaluation.every and self.conditions.gives:
            raise ValueError(
                "train.evaluation draws from captions and labels alone, but conditions gives "
                f"{', '.join(self.conditions.gives)}: leave train.evaluation.every at 0, the previews log sample_psnr"
            )
        return self


class Steered(nn.Module):
    """Denoiser and conditioner as one module: what is trained, averaged and wrapped together."""

    def __init__(self, denoiser: nn.Module, conditioner: Conditioner | None) -> None:
        super().__init__()
        self.denoiser = denoiser
        self.conditioner = conditioner

    def prepare(self, fields: Fields) -> dict[str, Any]:
        """What `forward` reads of a batch's fields, on the host."""
        return {} if self.conditioner is None else self.conditioner.prepare(fields)

    def forward(self, x_t: Tensor, timestep: Tensor, fields: Fields, keep: Keep = None) -> Tensor:
        """The prediction (B, C, h, w).

        Args:
            x_t: (B, C, h, w).
            timestep: network time (B,).
            fields: the batch's.
            keep: (B,) bool, False where the sample goes without its condition, or for each part of a composite
                conditioner by name; None keeps all.
        """
        if self.conditioner is None:
            return self.denoiser(x_t, timestep, Condition())
        size = (x_t.shape[2], x_t.shape[3])
        if isinstance(keep, dict):
            assert isinstance(self.conditioner, Composite)
            return self.denoiser(x_t, timestep, self.conditioner.partly(fields, keep, size))
        condition = self.conditioner(fields)
        if keep is not None:  # the null condition is asked for even if all keep theirs: every process has its gradient
            null = self.conditioner.null(x_t.shape[0], size)
            condition = select(keep, condition, null)
        return self.denoiser(x_t, timestep, condition)


Preview = Callable[[Steered, int], Mapping[str, float | list[float]]]
"""Given the averaged networks and the step, draws samples and returns numbers for the log."""

Evaluate = Callable[[Steered, TrainState], Mapping[str, float | list[float]]]
"""Measures the averaged networks and returns numbers for the log; may keep them, and note so in the state."""

Export = Callable[[Steered, TrainState], None]
"""Writes the model folder of the averaged networks."""


def train_diffusion(
    config: DiffusionRun,
    networks: Steered,
    schedule: Schedule,
    autoencoder: Autoencoder,
    scaling: Scaling,
    latents: LatentSource,
    folder: RunFolder,
    preview: Preview,
    export: Export,
    workers: Workers | None = None,
    evaluate: Evaluate | None = None,
) -> TrainState:
    """Trains `networks`, or goes on where the run in `folder` stopped; returns the final state.

    The autoencoder is only asked to turn cached moments into latents: images are never encoded here.
    Raises UserError if the folder holds another run, the disk fills up, or the loss stays non-finite.
    """
    train, workers = config.train, workers or Workers()
    objective.check_objective(config.objective, schedule)
    networks = workers.place(networks)
    scaling = scaling.to(workers.device)
    shadow = ema.average_of(networks)
    powers = ema.power_averages_of(networks, train.power_averages)
    adaptation = workers.place(begin_adaptation(config))
    beside = list(adaptation.parameters())
    learning = [*(p for p in networks.parameters() if p.requires_grad), *beside]
    state = TrainState(
        modules={"networks": networks, "ema": shadow, "powers": powers, "adaptation": adaptation},
        optimisers={"networks": build_optimiser(train.optimiser, networks, adaptation)},
    )
    optimiser = state.optimisers["networks"]
    source = latents.fingerprint()
    folder.resume(state, source)
    if workers.leads:
        snapshots.drop_after(folder.snapshots, state.step)
    state.notes["source"] = source
    for_training(networks)
    wrapped = workers.wrap(networks)
    dropout = train.condition_dropout if networks.conditioner is not None else 0.0
    H, W = height_width(config.data)
    latent = (autoencoder.latent_channels, H // autoencoder.factor, W // autoencoder.factor)

    step_images = train.batch * train.accumulate * workers.world
    parts = _part_dropout(config)
    precision = autocast(workers.device, train.precision)

    def learn(given: Micro) -> Tensor:
        """Adds a micro-batch's gradients; what is minimised and what is remembered of each sample, (2, B)."""
        with precision:
            prediction = wrapped(given.x_t, given.timestep, given.fields, given.keep)
        losses = objective.loss(config.objective, schedule, prediction, given.x0, given.noise, given.times.t)
        losses, remembered = adaptation(losses, given.times, schedule)
        (losses.mean() / train.accumulate).backward()
        return torch.stack([losses.detach(), remembered])

    gradients: Callable[[Micro], Tensor] = learn
    if recordable(workers.device) and workers.world == train.accumulate == 1 and not train.checkpointing:
        gradients = recorded(learn, learning)
    seen_before, stop = state.images, False
    with (
        open_batches(latents, train, state, workers) as data,
        RunLog(folder.path, "diffusion", state.step, share_done(train, state), workers.leads) as log,
        interruptible() as interrupt,
    ):
        while (done := share_done(train, state)) < 1 and not stop:
            t_start = time.monotonic()
            set_rate(optimiser, learning_rate(train.optimiser, state.step, done))
            loss_sum = torch.zeros((), device=workers.device)
            seen: list[tuple[Tensor | None, Tensor]] = []
            for micro, draw in enumerate(
                draws_of_step(
                    train, config.objective, schedule, latent, dropout, state.step, workers, adaptation.history, parts
                )
            ):
                batch = next(data)
                batch = replace(batch, fields=networks.prepare(batch.fields)).to(workers.device)
                x0 = scaling.to_model(autoencoder.latent_from_moments(batch.moments, draw.posterior))
                x_t = add_noise(schedule, x0, draw.noise, draw.t).contiguous(memory_format=torch.channels_last)
                timestep = network_time(draw.t, schedule.steps).float()
                given = Micro(x_t, timestep, x0, draw.noise, draw.times, draw.keep, batch.fields)
                with rng.seeded(train.seed, "dropout", state.step, micro, workers.rank, device=x_t.device):
                    losses, remembered = gradients(given)
                loss_sum += losses.mean() / train.accumulate
                seen.append((draw.times.part, remembered))

            workers.average(p.grad for p in beside if p.grad is not None)  # those of the networks are averaged already
            workers.average([loss_sum])
            norm, loss = read(gradients_norm(learning), loss_sum)
            finite = take_step(optimiser, train.optimiser, learning, norm, networks, shadow, train.ema_decay, state)
            if finite:
                ema.update_powers(powers, networks, train.power_averages, state.step - state.skipped + 1)
                _remember(adaptation, seen, workers)
            count_step(state, finite, step_images, workers.mean(time.monotonic() - t_start))
            done = share_done(train, state)
            check_progress(state, train.max_skipped)

            smoothed = _smoothed(state, loss)
            if state.step % train.log_every == 0 or done == 1:
                values = {"loss": loss, "loss_smoothed": smoothed, "gradient_norm": norm}
                values |= {"learning_rate": optimiser.param_groups[0]["lr"], "stall_seconds": data.stall_seconds}
                values |= {"images": state.images, "seconds": state.seconds, "skipped": state.skipped}
                log.record(state.step, values)
            log.advance(state.step, done, state.images - seen_before, f"loss {smoothed:.4f}")
            last = done == 1
            stop = workers.any(interrupt.wanted)  # read once a step: all processes stop after the same one
            if workers.leads and (state.step % train.preview_every == 0 or last):
                log.record(state.step, preview(_averaged(shadow), state.step))
            if workers.leads and evaluate is not None and (state.step % train.evaluation.every == 0 or last):
                log.record(state.step, evaluate(_averaged(shadow), state))
            if workers.leads and ema.snapshot_due(train.power_averages, state.step, last):
                write_snapshots(folder, networks, powers, train.power_averages, state)
            if workers.leads and (state.step % train.save_every == 0 or last or stop):
                export(_averaged(shadow), state)  # before the state: killed in between, the run does this step again
                folder.save(state)
        if stop and share_done(train, state) < 1:
            log.say(f"stopped after step {state.step}; the same command goes on from there")
    return state


def begin_adaptation(config: DiffusionRun) -> Adaptation:
    """What the objective learns beside the model, at its beginning: chance in it follows from the run's seed."""
    with rng.seeded(config.train.seed, "weights", "adaptation", device=torch.device("cpu")):
        return Adaptation(config.objective)


def _remember(adaptation: Adaptation, seen: list[tuple[Tensor | None, Tensor]], workers: Workers) -> None:
    """Tells the history of losses what the step's samples had, those of all processes."""
    if adaptation.history is not None:
        parts = torch.cat([workers.gather(part) for part, _ in seen if part is not None])
        adaptation.history.learn(parts, torch.cat([workers.gather(losses) for _, losses in seen]))


def write_snapshots(
    folder: RunFolder, networks: Steered, powers: nn.ModuleList, config: PowerAverages | None, state: TrainState
) -> None:
    """One of each power-function average, of the parameters that are trained, and thins out the older ones."""
    if config is None or state.step == state.skipped:
        return  # no step has changed anything yet
    learnt = {name for name, parameter in networks.named_parameters() if parameter.requires_grad}
    for average, width in zip(powers, config.widths, strict=True):
        tensors = {name: parameter for name, parameter in average.named_parameters() if name in learnt}
        snapshots.save_snapshot(folder.snapshots, state.step, width, tensors, state.step - state.skipped)
    snapshots.prune(folder.snapshots, config.snapshot_every, config.snapshots)


def _averaged(shadow: nn.Module) -> Steered:
    assert isinstance(shadow, Steered)
    return shadow


def _smoothed(state: TrainState, loss: float) -> float:
    """A running mean of the loss over about a hundred steps, kept in the state."""
    before: float = state.notes.get("loss", loss)
    if math.isfinite(loss):  # another would stay in the mean for good
        state.notes["loss"] = before + (loss - before) * max(0.01, 1 / state.step)
    return state.notes.get("loss", loss)


def _part_dropout(config: DiffusionRun) -> dict[str, float]:
    """The rates of all parts of a composite conditioner; empty where none is dropped by itself."""
    rates = config.train.part_dropout
    if not rates or not isinstance(config.conditioner, CompositeConfig):
        return {}
    return {name: rates.get(name, 0.0) for name in config.conditioner.parts}
