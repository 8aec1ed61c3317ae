"""Stage 2: the loop that trains a denoiser, and its conditioner with it, on cached latents (section 3.2, eq. 3)."""

import time
from collections.abc import Callable, Mapping
from typing import Self

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from sfumato import rng
from sfumato.autoencoder.model import Autoencoder
from sfumato.autoencoder.scaling import Scaling
from sfumato.conditioning.condition import Conditioner, Fields, select
from sfumato.conditioning.table import ConditionerConfig, NoneConfig
from sfumato.data.dataset import LatentSource
from sfumato.data.loader import Loader
from sfumato.data.table import DataConfig
from sfumato.denoiser.table import DenoiserConfig
from sfumato.diffusion import objective
from sfumato.diffusion.objective import ObjectiveConfig
from sfumato.diffusion.process import add_noise, network_time
from sfumato.diffusion.schedule import Schedule, ScheduleConfig
from sfumato.engine.training import for_training
from sfumato.schema import Schema
from sfumato.training import ema
from sfumato.training.data import HeldOut
from sfumato.training.log import RunLog
from sfumato.training.optim import OptimiserConfig, build_optimiser, clip_, gradients_norm, learning_rate, set_rate
from sfumato.training.run import RunFolder, interruptible
from sfumato.training.state import TrainState
from sfumato.training.steps import check_progress, count_step
from sfumato.training.workers import Precision, Workers, autocast


class DiffusionTraining(Schema):
    """How long and how; `batch` counts latents per process and micro-batch."""

    steps: int = Field(100_000, ge=1)
    batch: int = Field(64, ge=1)
    accumulate: int = Field(1, ge=1)
    condition_dropout: float = Field(0.1, ge=0, le=1)
    """How often a sample is trained without its condition, so that guidance works; 0 rules guidance out."""
    precision: Precision = "auto"
    optimiser: OptimiserConfig = OptimiserConfig()
    ema_decay: float = Field(0.999, ge=0, lt=1)
    seed: int = 0
    log_every: int = Field(50, ge=1)
    preview_every: int = Field(1000, ge=1)
    save_every: int = Field(1000, ge=1)
    workers: int = Field(1, ge=0)
    max_skipped: int = Field(20, ge=1)


class DiffusionRun(Schema):
    """The configuration of `sfumato train diffusion`."""

    denoiser: DenoiserConfig
    conditioner: ConditionerConfig = NoneConfig()
    schedule: ScheduleConfig
    objective: ObjectiveConfig = ObjectiveConfig()
    data: DataConfig
    held_out: HeldOut = HeldOut()
    mirrored: bool = False
    """Cache each picture's mirror image too: not where left and right have a meaning."""
    train: DiffusionTraining = DiffusionTraining()

    @model_validator(mode="after")
    def _dropout_has_a_condition(self) -> Self:
        if self.conditioner.kind == "none" and self.train.condition_dropout not in (0, 0.1):
            raise ValueError("train.condition_dropout is set but conditioner.kind is none: there is nothing to drop")
        return self


class Steered(nn.Module):
    """Denoiser and conditioner as one module: what is trained, averaged and wrapped together."""

    def __init__(self, denoiser: nn.Module, conditioner: Conditioner | None) -> None:
        super().__init__()
        self.denoiser = denoiser
        self.conditioner = conditioner

    def forward(self, x_t: Tensor, timestep: Tensor, fields: Fields, keep: Tensor) -> Tensor:
        """x_t (B, C, h, w), network time (B,), the batch's fields, keep (B,) bool -> prediction (B, C, h, w)."""
        if self.conditioner is None:
            return self.denoiser(x_t, timestep, None)
        condition = self.conditioner(fields)
        if not bool(keep.all()):
            null = self.conditioner.null(x_t.shape[0], (x_t.shape[2], x_t.shape[3]))
            condition = select(keep, condition, null)
        return self.denoiser(x_t, timestep, condition)


Preview = Callable[[Steered, int], Mapping[str, float | list[float]]]
"""Given the averaged networks and the step, draws samples and returns numbers for the log."""

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
) -> TrainState:
    """Trains `networks`, or goes on where the run in `folder` stopped; returns the final state.

    The autoencoder is only asked to turn cached moments into latents: images are never encoded here.
    Raises UserError if the folder holds another run, the disk fills up, or the loss stays non-finite.
    """
    train, workers = config.train, Workers()
    objective.check_objective(config.objective, schedule)
    networks = workers.place(networks)
    scaling = scaling.to(workers.device)
    shadow = ema.average_of(networks)
    learning = [p for p in networks.parameters() if p.requires_grad]
    state = TrainState(
        modules={"networks": networks, "ema": shadow},
        optimisers={"networks": build_optimiser(train.optimiser, learning)},
    )
    optimiser = state.optimisers["networks"]
    folder.resume(state)
    for_training(networks)
    wrapped = workers.wrap(networks)
    channels = autoencoder.latent_channels
    dropout = train.condition_dropout if networks.conditioner is not None else 0.0

    precision = autocast(workers.device, train.precision)
    seen_before = state.images
    with (
        Loader(
            latents, train.batch, train.seed, state.step * train.accumulate, workers.rank, workers.world, train.workers
        ) as data,
        RunLog(folder.path, "diffusion", train.steps, state.step, workers.leads) as log,
        interruptible() as interrupt,
    ):
        while state.step < train.steps and not interrupt.wanted:
            t_start = time.monotonic()
            set_rate(optimiser, learning_rate(train.optimiser, state.step, train.steps))
            loss_sum = 0.0
            for micro in range(train.accumulate):
                batch = next(data).to(workers.device)
                draw = _Draws(config, batch.moments.shape, channels, schedule, dropout, state.step, micro, workers)
                x0 = scaling.to_model(autoencoder.latent_from_moments(batch.moments, draw.posterior))
                x_t = add_noise(schedule, x0, draw.noise, draw.t).contiguous(memory_format=torch.channels_last)
                timestep = network_time(draw.t, schedule.steps).float()
                with precision:
                    prediction = wrapped(x_t, timestep, batch.fields, draw.keep)
                loss = objective.loss(config.objective, schedule, prediction, x0, draw.noise, draw.t).mean()
                (loss / train.accumulate).backward()
                loss_sum += loss.item() / train.accumulate

            norm = gradients_norm(learning)
            finite = bool(torch.isfinite(norm))
            if finite:
                clip_(learning, norm, train.optimiser.clip_norm)
                optimiser.step()
                ema.update(shadow, networks, ema.decay_at(state.step, train.ema_decay))
            optimiser.zero_grad(set_to_none=True)
            count_step(state, finite, train.batch * train.accumulate * workers.world, time.monotonic() - t_start)
            check_progress(state, train.max_skipped)

            mean_loss = _smoothed(state, loss_sum)
            if state.step % train.log_every == 0 or state.step == train.steps:
                values = {"loss": loss_sum, "loss_smoothed": mean_loss, "gradient_norm": norm.item()}
                values |= {"learning_rate": optimiser.param_groups[0]["lr"], "stall_seconds": data.stall_seconds}
                values |= {"images": state.images, "seconds": state.seconds, "skipped": state.skipped}
                log.record(state.step, values)
            log.advance(state.step, state.images - seen_before, f"loss {mean_loss:.4f}")
            last = state.step == train.steps or interrupt.wanted
            if workers.leads and (state.step % train.save_every == 0 or last):
                folder.save(state)
                export(_averaged(shadow), state)
            if workers.leads and (state.step % train.preview_every == 0 or last):
                log.record(state.step, preview(_averaged(shadow), state.step))
        if interrupt.wanted:
            log.say(f"stopped after step {state.step}; the same command goes on from there")
    workers.close()
    return state


def _averaged(shadow: nn.Module) -> Steered:
    assert isinstance(shadow, Steered)
    return shadow


def _smoothed(state: TrainState, loss: float) -> float:
    """A running mean of the loss over about a hundred steps, kept in the state."""
    before = state.notes.get("loss", loss)
    if loss == loss:  # a loss that is not a number would stay in the mean for good
        state.notes["loss"] = before + (loss - before) * max(0.01, 1 / (state.step + 1))
    return state.notes.get("loss", loss)


class _Draws:
    """Times, noise and dropped conditions of one micro-batch: this rank's rows of what is drawn for the global batch.

    So a run of several processes sees what one process with the whole batch would.
    """

    def __init__(
        self,
        config: DiffusionRun,
        shape: torch.Size,
        channels: int,
        schedule: Schedule,
        dropout: float,
        step: int,
        micro: int,
        workers: Workers,
    ) -> None:
        self._rows = slice(shape[0] * workers.rank, shape[0] * (workers.rank + 1))
        self._device, self._count = workers.device, shape[0] * workers.world
        self._key, self._seed = (step, micro), config.train.seed
        latent = (self._count, channels, *shape[2:])
        self.t = self._own(objective.draw_times(config.objective, self._count, self._generator("time"), schedule))
        self.noise = self._own(objective.draw_noise(config.objective, latent, self._generator("noise")))
        self.posterior = self._own(torch.randn(latent, generator=self._generator("posterior")))
        self.keep = self._own(torch.rand(self._count, generator=self._generator("dropout")) >= dropout)

    def _generator(self, purpose: str) -> torch.Generator:
        return rng.generator(self._seed, purpose, *self._key)

    def _own(self, drawn: Tensor) -> Tensor:
        return drawn[self._rows].to(self._device)
