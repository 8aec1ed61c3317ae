"""Both stages at once: the loop that trains an autoencoder, and a diffusion model on its latents, from the same images.

The result is a model as any other. How much of stage 2's loss reaches the encoder is the run's coupling
(`sfumato.training.coupling`).
"""

import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from sfumato.conditioning.mean import ConditionMean
from sfumato.data.dataset import Dataset, Example
from sfumato.data.loader import Batch
from sfumato.diffusion import objective
from sfumato.diffusion.objective import Adaptation
from sfumato.diffusion.schedule import Schedule
from sfumato.engine.training import for_training
from sfumato.training.autoencoder import mean_terms, stage1_around
from sfumato.training.averages import ema
from sfumato.training.collapse import collapse_warnings
from sfumato.training.coupling import normalises
from sfumato.training.diffusion import build_adaptation, build_head, update_history
from sfumato.training.joint_pass import (
    JointNetworks,
    JointPass,
    follow_latents,
    forward_backward,
    joint_noise,
    latent_moments,
    spread_of,
)
from sfumato.training.joint_run import JointRun, first_stage, second_stage
from sfumato.training.optim import build_optimiser, clip_, gradients_norm, learning_rate, read, set_rate
from sfumato.training.run import RunFolder
from sfumato.training.session import Periodic, Session, Values, open_session
from sfumato.training.source import source_key
from sfumato.training.stage1_losses import Stage1Modules
from sfumato.training.state import TrainState
from sfumato.training.workers import Workers

Preview = Callable[[JointNetworks, int], Mapping[str, float | list[float]]]
"""Called with the averaged networks and the step: writes images and returns numbers for the log."""

Export = Callable[[JointNetworks, TrainState], None]
"""Writes the model folder of the averaged networks."""

AUTOENCODER, DENOISER = "autoencoder", "denoiser"

Records = list[tuple[Tensor | None, Tensor]]
"""Of each micro-batch the parts of the density of times, and the losses to record in the history."""


def train_joint(
    config: JointRun,
    joint: JointNetworks,
    schedule: Schedule,
    dataset: Dataset,
    folder: RunFolder,
    preview: Preview,
    export: Export,
    workers: Workers | None = None,
) -> TrainState:
    """Trains `joint`, or resumes the run in `folder`; returns the final state.

    The images of `dataset` have the fields that the conditioner reads. Raises UserError if the folder holds another
    run, the disk fills up, or the loss stays non-finite.
    """
    train, workers = config.train, workers or Workers()
    objective.check_objective(config.objective, schedule)
    parts = JointParts.of(config, joint, workers)
    joint, averaged = parts.joint, ema.average_of(parts.joint)
    state = _train_state(config, parts, averaged, workers)
    folder.resume(state, source_key(dataset), strict=folder.data_moved)
    for_training(joint)
    passed = workers.wrap(JointPass(config, joint, parts.first.log_variance, parts.head, schedule))

    def show() -> Values:
        values = preview(averaged, state.step)
        for sentence in collapse_warnings(values, state.notes, normalises(config.coupling)):
            session.log.say(sentence)
        return values

    save = partial(export, averaged, state)
    tasks = [Periodic(train.preview_every, show)]
    with open_session("joint training", dataset, train, state, folder, workers, tasks, save) as session:
        _report_unused(config, session)
        while session.goes_on():
            t_start, done = time.monotonic(), session.done
            terms, moments, records = _gradients(config, parts, passed, session, schedule, state.step, workers)
            numbers, norms, spread = _read(terms, parts, spread_of(moments, joint.scaling.shift))
            finite = all(math.isfinite(norm) for norm in norms.values())
            if finite:
                _optimizer_steps(config, parts, averaged, norms, moments, done, state)
                update_history(parts.adaptation, records, workers)
            for optimiser in state.optimisers.values():
                optimiser.zero_grad(set_to_none=True)
            session.count(finite, time.monotonic() - t_start)

            values = {f"gradient_norm_{name}": norm for name, norm in norms.items()}
            rates = {f"learning_rate_{name}": one.param_groups[0]["lr"] for name, one in state.optimisers.items()}
            session.record(
                {**numbers, **values, **rates, "spread": spread},
                f"L {numbers['reconstruction']:.4f}, loss {numbers['loss']:.3f}",
            )
            session.finish()
    return state


@dataclass(frozen=True)
class JointParts:
    """The trained parts of a run: the networks, the losses' modules of stage 1, the objective's of stage 2."""

    joint: JointNetworks
    first: Stage1Modules
    adaptation: Adaptation
    head: ConditionMean | None

    @classmethod
    def of(cls, config: JointRun, joint: JointNetworks, workers: Workers) -> "JointParts":
        """The parts at the start of a run, on the device."""
        joint = workers.place(joint)
        first, second = stage1_around(first_stage(config), joint.autoencoder, workers), second_stage(config)
        head = build_head(second, joint.networks, joint.autoencoder.latent_channels)
        if head is not None:
            workers.place(head)
        return cls(joint, first, workers.place(build_adaptation(second)), head)

    def parameters(self) -> dict[str, list[nn.Parameter]]:
        """The parameters of each optimizer."""
        of_first, of_second = self.trained()
        return {
            name: [p for module in modules for p in module.parameters() if p.requires_grad]
            for name, modules in ((AUTOENCODER, of_first), (DENOISER, of_second))
        }

    def trained(self) -> tuple[list[nn.Module], list[nn.Module]]:
        """The modules of both optimizers."""
        heads = [] if self.head is None else [self.head]
        return [self.joint.autoencoder, self.first.log_variance], [self.joint.networks, self.adaptation, *heads]


def _gradients(
    config: JointRun,
    parts: JointParts,
    passed: nn.Module,
    session: Session[Example],
    schedule: Schedule,
    step: int,
    workers: Workers,
) -> tuple[dict[str, Tensor], Tensor, Records]:
    """Adds a step's gradients; returns the terms of the losses and the moments (2, C) of the latents, as means over
    micro-batches and processes, and what goes into the history of losses."""
    train, joint, adaptation = config.train, parts.joint, parts.adaptation
    micro_terms: list[dict[str, Tensor]] = []
    moments = torch.zeros(2, joint.autoencoder.latent_channels, device=workers.device)
    records: Records = []
    h, w = (side // config.model.factor for side in session.next_size)
    conditional = joint.networks.conditioner is not None
    latent_shape = (config.model.raw_channels, h, w)
    noises = joint_noise(config, schedule, adaptation, latent_shape, conditional, step, workers)
    for micro, noise in enumerate(noises):
        batch = _repeated(joint.networks.prepared(next(session.data)), train.draws).to(workers.device)
        image = batch.images.contiguous(memory_format=torch.channels_last)
        dropout = ("dropout", step, micro, workers.rank)
        with workers.accumulating(micro == train.accumulate - 1, passed):
            latent, terms, recorded = forward_backward(
                config, parts.first, adaptation, passed, image, noise, batch.fields, dropout, schedule, workers
            )
        micro_terms.append(terms)
        moments += latent_moments(latent, joint.scaling) / train.accumulate
        records.append((noise.second.times.part, recorded))
    # the gradients of the networks are averaged already
    workers.average([moments, *(p.grad for p in adaptation.parameters() if p.grad is not None)])
    return mean_terms(micro_terms, workers), moments, records


def _train_state(config: JointRun, parts: JointParts, averaged: JointNetworks, workers: Workers) -> TrainState:
    """The initial state of a run."""
    of_first, of_second = parts.trained()
    heads = {} if parts.head is None else {"head": parts.head}
    return TrainState(
        modules={
            "joint": parts.joint,
            "ema": averaged,
            "log_variance": parts.first.log_variance,
            "adaptation": parts.adaptation,
            **heads,
        },
        optimisers={
            AUTOENCODER: build_optimiser(config.train.optimiser, *of_first, sharing=workers.sharing),
            DENOISER: build_optimiser(config.train.denoiser, *of_second, sharing=workers.sharing),
        },
    )


def _repeated(batch: Batch, draws: int) -> Batch:
    """The batch with fields for `draws` samples of each image, next to each other."""

    def each(value: Any) -> Any:
        if isinstance(value, Tensor):
            return value.repeat_interleave(draws, 0)
        return [one for one in value for _ in range(draws)]

    return replace(batch, fields={name: each(value) for name, value in batch.fields.items()})


def _read(
    terms: dict[str, Tensor], parts: JointParts, spread: Tensor
) -> tuple[dict[str, float], dict[str, float], list[float]]:
    """The terms, the norms of the gradients by optimizer, and the spread (C,) of the latents, as numbers: the only wait
    for the device in a step."""
    norms = {name: gradients_norm(parameters) for name, parameters in parts.parameters().items()}
    values = read(*terms.values(), *norms.values(), *spread)
    split, end = len(terms), len(terms) + len(norms)
    return (
        dict(zip(terms, values[:split], strict=True)),
        dict(zip(norms, values[split:end], strict=True)),
        values[end:],
    )


def _optimizer_steps(
    config: JointRun,
    parts: JointParts,
    averaged: JointNetworks,
    norms: dict[str, float],
    moments: Tensor,
    done: float,
    state: TrainState,
) -> None:
    """Clips and steps both networks, lets the scaling follow the latents, and updates the average."""
    update, parameters = state.step - state.skipped + 1, parts.parameters()
    settings = {AUTOENCODER: config.train.optimiser, DENOISER: config.train.denoiser}
    for name, optimiser in state.optimisers.items():
        set_rate(optimiser, learning_rate(settings[name], state.step, done))
        clip_(parameters[name], norms[name], settings[name].clip_norm)
        optimiser.step()
    if normalises(config.coupling):
        follow_latents(parts.joint.scaling, moments, update)
    ema.update(averaged, parts.joint, ema.decay_at(update, config.train.ema_decay))


def _report_unused(config: JointRun, session: Session[Example]) -> None:
    """Logs which setting has no effect under this coupling."""
    if config.coupling.kind == "prior" and config.loss.kl_weight > 0:
        session.log.say(
            f"coupling.kind prior has no KL term: loss.kl_weight {config.loss.kl_weight:g} has no effect, the prior's "
            f"bound with coupling.weight {config.coupling.weight:g} takes its place"
        )
