"""Stage 2: the loop that trains a denoiser, and its conditioner with it, on cached latents (section 3.2, eq. 3)."""

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from sfumato import rng
from sfumato.autoencoder.model import Autoencoder
from sfumato.autoencoder.scaling import Scaling
from sfumato.conditioning.composite import Composite
from sfumato.conditioning.condition import Condition, Conditioner, Fields, select
from sfumato.conditioning.mean import ConditionMean
from sfumato.data.dataset import LatentExample, LatentSource
from sfumato.data.loader import Batch
from sfumato.diffusion import objective
from sfumato.diffusion.objective import Adaptation, ObjectiveConfig
from sfumato.diffusion.schedule import Schedule
from sfumato.engine.precision import autocast
from sfumato.engine.recorded_step import recordable
from sfumato.engine.training import for_training
from sfumato.errors import UserError
from sfumato.training.averages import ema, snapshots
from sfumato.training.averages.ema import PowerAverages
from sfumato.training.diffusion_run import DiffusionRun, part_dropout
from sfumato.training.micro import MicroBatch, micro_batch, recorded
from sfumato.training.optim import build_optimiser, gradients_norm, learning_rate, read, set_rate
from sfumato.training.parts import without_memory
from sfumato.training.run import RunFolder
from sfumato.training.session import Periodic, Session, open_session, resume
from sfumato.training.shares import Sharing
from sfumato.training.stage2_losses import stage2_losses
from sfumato.training.state import TrainState
from sfumato.training.step_noise import Keep, StepNoise, step_noise
from sfumato.training.steps import optimizer_step
from sfumato.training.workers import Workers

if TYPE_CHECKING:
    from sfumato.training.sharding import WholeCopy


class ConditionalDenoiser(nn.Module):
    """Denoiser and conditioner as one module: what is trained, averaged and wrapped together."""

    def __init__(self, denoiser: nn.Module, conditioner: Conditioner | None) -> None:
        super().__init__()
        self.denoiser = denoiser
        self.conditioner = conditioner

    def prepared(self, batch: Batch) -> Batch:
        """The batch with the fields that `forward` needs, tokenized and so on, still on the host."""
        return replace(batch, fields={} if self.conditioner is None else self.conditioner.prepare(batch.fields))

    def forward(self, x_t: Tensor, timestep: Tensor, fields: Fields, keep: Keep = None) -> Tensor:
        """The prediction (B, C, h, w).

        Args:
            x_t: (B, C, h, w).
            timestep: network time (B,).
            fields: the batch's.
            keep: (B,) bool, False where the sample is trained without its condition, or for each part of a composite
                conditioner by name; None keeps all.
        """
        return self.denoiser(x_t, timestep, self.condition(x_t, fields, keep))

    def condition(self, x_t: Tensor, fields: Fields, keep: Keep = None) -> Condition:
        """The condition of a batch, with the arguments of `forward`."""
        if self.conditioner is None:
            return Condition()
        size = (x_t.shape[2], x_t.shape[3])
        if isinstance(keep, dict):
            assert isinstance(self.conditioner, Composite)
            return self.conditioner.partly(fields, keep, size)
        condition = self.conditioner(fields)
        if keep is None:
            return condition
        # computed even if all keep their condition, so that every process has its gradient
        return select(keep, condition, self.conditioner.null(x_t.shape[0], size))


class WithConditionMean(nn.Module):
    """The networks and the head of the added loss as one module, which computes the condition once for both."""

    def __init__(self, networks: ConditionalDenoiser, head: ConditionMean) -> None:
        super().__init__()
        self.networks = networks
        self.head = head

    def forward(self, x_t: Tensor, timestep: Tensor, fields: Fields, keep: Keep = None) -> tuple[Tensor, Tensor]:
        """The prediction (B, C, h, w) and the mean clean latent by the condition alone; arguments as the networks'."""
        condition = self.networks.condition(x_t, fields, keep)
        return self.networks.denoiser(x_t, timestep, condition), self.head(condition)


Preview = Callable[[ConditionalDenoiser, int], Mapping[str, float | list[float]]]
"""Called with the averaged networks and the step: writes samples and returns numbers for the log."""

Evaluate = Callable[[ConditionalDenoiser, TrainState], Mapping[str, float | list[float]]]
"""Evaluates the averaged networks and returns numbers for the log; may save them, and note that in the state."""

Export = Callable[[ConditionalDenoiser, TrainState], None]
"""Writes the model folder of the averaged networks."""


def train_diffusion(
    config: DiffusionRun,
    networks: ConditionalDenoiser,
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
    """Trains `networks`, or resumes the run in `folder`; returns the final state.

    The autoencoder only turns cached moments into latents: images are never encoded here.
    Raises UserError if the folder holds another run, the disk fills up, or the loss stays non-finite.
    """
    train, workers = config.train, workers or Workers()
    objective.check_objective(config.objective, schedule)
    scaling = scaling.to(workers.device)
    modules = _modules(config, networks, autoencoder.latent_channels, workers)
    averaged = _sharded(modules, workers) if workers.splits(train.shard) else None
    state = _train_state(config, modules, workers.sharing)
    resume(folder, state, latents)
    networks, wrapped = _to_train(modules, averaged is not None, workers)
    optimiser, parameters = state.optimisers["networks"], _parameters(modules)
    forward_backward = _forward_backward(config, wrapped, modules.adaptation, schedule, parameters, workers)
    shown = modules.averaged if averaged is None else averaged.module
    tasks = _periodic(config, modules, shown, folder, state, preview, evaluate)
    save = partial(export, shown, state)
    with open_session("diffusion", latents, train, state, folder, workers, tasks, save, averaged) as session:
        _start_session(session, config.objective, schedule, folder, state, workers)
        while session.goes_on():
            t_start = time.monotonic()
            set_rate(optimiser, learning_rate(train.optimiser, state.step, session.done))
            loss_sum = torch.zeros(2, device=workers.device)
            loss_records: list[tuple[Tensor | None, Tensor]] = []
            latent = (autoencoder.latent_channels, *session.next_size)
            for micro, noise in enumerate(_noise_of_step(config, modules, latent, schedule, state.step, workers)):
                batch = networks.prepared(next(session.data)).to(workers.device)
                x0 = scaling.to_model(autoencoder.latent_from_moments(batch.moments, noise.posterior))
                dropout = rng.seeded(train.seed, "dropout", state.step, micro, workers.rank, device=x0.device)
                with workers.accumulating(micro == train.accumulate - 1, wrapped), dropout:
                    losses, recorded_losses, means = forward_backward(micro_batch(schedule, x0, noise, batch.fields))
                loss_sum += torch.stack([losses, means]).mean(1) / train.accumulate
                loss_records.append((noise.times.part, recorded_losses))

            # the gradients of the networks are averaged already
            workers.average([loss_sum, *(p.grad for p in modules.adaptation.parameters() if p.grad is not None)])
            norm, loss, mean = read(gradients_norm(parameters), *loss_sum)
            finite = optimizer_step(optimiser, train, parameters, norm, networks, modules.averaged, state)
            if finite:
                ema.update_powers(modules.powers, networks, train.power_averages, state.step - state.skipped + 1)
                update_history(modules.adaptation, loss_records, workers)
            session.count(finite, time.monotonic() - t_start)

            session.record(*_to_log(state, optimiser, loss, norm, None if modules.head is None else mean))
            session.finish()
    return state


def _start_session(
    session: Session[LatentExample],
    config: ObjectiveConfig,
    schedule: Schedule,
    folder: RunFolder,
    state: TrainState,
    workers: Workers,
) -> None:
    """Removes snapshots of steps that are repeated, and logs which times the weighting leaves untrained."""
    if workers.leads:
        snapshots.drop_after(folder.snapshots, state.step)
    if (untrained := objective.untrained_times(config, schedule)) is not None:
        session.log.say(untrained)


@dataclass(frozen=True)
class Stage2Modules:
    """The networks of stage 2, their average, the power-function averages, learned parts of the objective, and the head
    of its added loss."""

    networks: ConditionalDenoiser
    averaged: ConditionalDenoiser
    powers: nn.ModuleList
    adaptation: Adaptation
    head: ConditionMean | None
    trained: nn.Module
    """The networks as a step calls them: with the head, where there is one."""


def _sharded(modules: Stage2Modules, workers: Workers) -> "WholeCopy[ConditionalDenoiser]":
    """Leaves each process a part of the networks and of their average, in place."""
    from sfumato.training.sharding import shard_with_average

    return shard_with_average(modules.trained, modules.networks, modules.averaged, workers)


def _modules(
    config: DiffusionRun, networks: ConditionalDenoiser, latent_channels: int, workers: Workers
) -> Stage2Modules:
    """The modules at the start of a run: on the device, but where they will be split, the networks as they are and
    their average without memory."""
    whole = not workers.splits(config.train.shard)
    head = build_head(config, networks, latent_channels)
    if whole:
        networks = workers.place(networks)
        head = None if head is None else workers.place(head)
    return Stage2Modules(
        networks,
        ema.average_of(networks if whole else without_memory(networks)),
        ema.power_averages_of(networks, config.train.power_averages),
        workers.place(build_adaptation(config)),
        head,
        networks if head is None else WithConditionMean(networks, head),
    )


def _train_state(config: DiffusionRun, modules: Stage2Modules, sharing: Sharing | None) -> TrainState:
    """The initial state of a run of stage 2."""
    heads = {} if modules.head is None else {"head": modules.head}
    trained = [modules.networks, modules.adaptation, *heads.values()]
    return TrainState(
        modules={
            "networks": modules.networks,
            "ema": modules.averaged,
            "powers": modules.powers,
            "adaptation": modules.adaptation,
            **heads,
        },
        optimisers={"networks": build_optimiser(config.train.optimiser, *trained, sharing=sharing)},
    )


def _to_train(modules: Stage2Modules, sharded: bool, workers: Workers) -> tuple[ConditionalDenoiser, nn.Module]:
    """The networks in the form in which they train, and the module that the steps call."""
    if sharded:  # fused blocks need weights in channels-last order, which FSDP2 does not support
        return modules.networks, modules.trained
    return for_training(modules.networks), workers.wrap(modules.trained)


def _parameters(modules: Stage2Modules) -> list[nn.Parameter]:
    """The parameters that the optimizer updates."""
    trained = (parameter for parameter in modules.trained.parameters() if parameter.requires_grad)
    return [*trained, *modules.adaptation.parameters()]


def _forward_backward(
    config: DiffusionRun,
    wrapped: nn.Module,
    adaptation: Adaptation,
    schedule: Schedule,
    parameters: Sequence[Tensor],
    workers: Workers,
) -> Callable[[MicroBatch], Tensor]:
    """The function that adds a micro-batch's gradients to `parameters`, recorded as a CUDA graph where possible.

    It returns of each sample the loss, the loss to record in the history, and the error of the mean by the condition
    alone, (3, B); the last is 0 without a head.
    """
    train, precision = config.train, autocast(workers.device, config.train.precision)

    def forward_backward(micro: MicroBatch) -> Tensor:
        with precision:
            out = wrapped(micro.x_t, micro.timestep, micro.fields, micro.keep)
        losses = stage2_losses(config.objective, schedule, adaptation, out, micro)
        (losses.total(config.objective) / train.accumulate).backward()
        return torch.stack([losses.adapted.detach(), losses.recorded, losses.means.detach()])

    if recordable(workers.device) and workers.world == train.accumulate == 1 and not train.checkpointing:
        return recorded(forward_backward, parameters)
    return forward_backward


def _noise_of_step(
    config: DiffusionRun,
    modules: Stage2Modules,
    latent: tuple[int, int, int],
    schedule: Schedule,
    step: int,
    workers: Workers,
) -> list[StepNoise]:
    """The random numbers of each micro-batch of a step on latents (C, h, w)."""
    dropout = config.train.condition_dropout if modules.networks.conditioner is not None else 0.0
    history, parts = modules.adaptation.history, part_dropout(config)
    return step_noise(config.train, config.objective, schedule, latent, dropout, step, workers, history, parts)


def _periodic(
    config: DiffusionRun,
    modules: Stage2Modules,
    shown: ConditionalDenoiser,
    folder: RunFolder,
    state: TrainState,
    preview: Preview,
    evaluate: Evaluate | None,
) -> list[Periodic]:
    """Previews and evaluations of the average `shown`, and snapshots of the power-function averages."""
    train, averages = config.train, config.train.power_averages
    tasks = [Periodic(train.preview_every, lambda: preview(shown, state.step))]
    if evaluate is not None:
        tasks.append(Periodic(train.evaluation.every, lambda: evaluate(shown, state)))
    if averages is not None:
        snapshot = partial(write_snapshots, folder, modules.networks, modules.powers, averages, state)
        tasks.append(Periodic(averages.snapshot_every, snapshot))
    return tasks


def build_adaptation(config: DiffusionRun) -> Adaptation:
    """The learned parts of the objective, initialised from the run's seed."""
    with rng.seeded(config.train.seed, "weights", "adaptation", device=torch.device("cpu")):
        return Adaptation(config.objective)


def build_head(config: DiffusionRun, networks: ConditionalDenoiser, latent_channels: int) -> ConditionMean | None:
    """The head of the added loss, initialised from the run's seed; None where the loss is off.

    Raises UserError if the condition has no tokens.
    """
    if config.objective.condition_mean == 0:
        return None
    conditioner = networks.conditioner
    width = None if conditioner is None else conditioner.spec.token_dim
    if width is None:
        raise UserError(
            f"objective.condition_mean is {config.objective.condition_mean:g}, but conditioner.kind "
            f"{config.conditioner.kind} makes no tokens: set objective.condition_mean=0, or condition on text"
        )
    with rng.seeded(config.train.seed, "weights", "condition mean", device=torch.device("cpu")):
        return ConditionMean(width, latent_channels)


def update_history(adaptation: Adaptation, loss_records: list[tuple[Tensor | None, Tensor]], workers: Workers) -> None:
    """Adds the losses of the step's samples, over all processes, to the history."""
    if adaptation.history is not None:
        parts = torch.cat([workers.gather(part) for part, _ in loss_records if part is not None])
        adaptation.history.update(parts, torch.cat([workers.gather(losses) for _, losses in loss_records]))


def write_snapshots(
    folder: RunFolder, networks: ConditionalDenoiser, powers: nn.ModuleList, config: PowerAverages, state: TrainState
) -> None:
    """Writes a snapshot of each power-function average (trained parameters only), and thins out older ones."""
    if state.step == state.skipped:
        return  # no step has changed anything yet
    trained = {name for name, parameter in networks.named_parameters() if parameter.requires_grad}
    for average, width in zip(powers, config.widths, strict=True):
        tensors = {name: parameter for name, parameter in average.named_parameters() if name in trained}
        snapshots.save_snapshot(folder.snapshots, state.step, width, tensors, state.step - state.skipped)
    snapshots.prune(folder.snapshots, config.snapshot_every, config.snapshots)


def _to_log(
    state: TrainState, optimiser: torch.optim.Optimizer, loss: float, norm: float, mean: float | None
) -> tuple[dict[str, float], str]:
    """The numbers of a step and a headline; `mean` is the added loss, if any. Counts the loss into its running mean."""
    rate = optimiser.param_groups[0]["lr"]
    smoothed = _smoothed(state, loss)
    values = {"loss": loss, "loss_smoothed": smoothed, "gradient_norm": norm, "learning_rate": rate}
    if mean is not None:
        values["loss_condition_mean"] = mean
    return values, f"loss {smoothed:.4f}"


def _smoothed(state: TrainState, loss: float) -> float:
    """A running mean of the loss over about a hundred steps, stored in the state."""
    before: float = state.notes.get("loss", loss)
    if math.isfinite(loss):  # NaN would stay in the mean for good
        state.notes["loss"] = before + (loss - before) * max(0.01, 1 / state.step)
    return state.notes.get("loss", loss)
