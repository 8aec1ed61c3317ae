"""The random numbers of a training step on latents: times, noise, posterior samples, dropped conditions."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

import torch
from torch import Tensor

from sfumato import rng
from sfumato.diffusion import objective, times
from sfumato.diffusion.objective import ObjectiveConfig
from sfumato.diffusion.schedule import Schedule
from sfumato.diffusion.times import LossHistory, RandomTimes
from sfumato.training.workers import Workers

Keep = Tensor | dict[str, Tensor] | None
"""Which samples (B,) keep their condition: all of it, or each part of a composite by name; None: all do."""


class Batches(Protocol):
    """The settings of a loop that concern a step's samples."""

    @property
    def seed(self) -> int: ...

    @property
    def batch(self) -> int: ...

    @property
    def accumulate(self) -> int: ...


@dataclass(frozen=True)
class StepNoise:
    """The random numbers of one micro-batch; noises (B, C, h, w); keep is None without condition dropout.

    `posterior` is None where the mean of the posterior is trained on.
    """

    times: RandomTimes
    noise: Tensor
    posterior: Tensor | None
    keep: Keep

    @property
    def t(self) -> Tensor:
        """The times (B,), float64."""
        return self.times.t


def step_noise(
    train: Batches,
    config: ObjectiveConfig,
    schedule: Schedule,
    latent: tuple[int, ...],
    condition_dropout: float,
    step: int,
    workers: Workers,
    history: LossHistory | None = None,
    part_dropout: Mapping[str, float] | None = None,
) -> list[StepNoise]:
    """One for each micro-batch of the step: this rank's rows of what is sampled for the step's whole batch.

    Of the noise only these rows are drawn. So several processes, or several micro-batches, use the same numbers as one
    with the whole batch. latent is (C, h, w). `part_dropout`: the rate at which each part of a composite condition is
    dropped separately.
    """
    rows = (train.accumulate, workers.world, train.batch)
    count = math.prod(rows)

    def own(values: Tensor) -> Tensor:
        return values.unflatten(0, rows)[:, workers.rank].to(workers.device, non_blocking=True)

    def named(purpose: str) -> torch.Generator:
        return rng.generator(train.seed, purpose, step)

    def own_rows(purpose: str) -> rng.OwnRows:
        return rng.OwnRows(named(purpose), rows, workers.rank)

    sampled = times.sample(config.times, count, named("time"), schedule, config.stratified, history)
    noise = objective.sample_noise(config, latent, own_rows("noise")).to(workers.device, non_blocking=True)
    posterior: Sequence[Tensor | None] = [None] * train.accumulate
    if config.latents == "sample":
        posterior = list(own_rows("posterior")(latent).to(workers.device, non_blocking=True))
    whole: Tensor | None = None
    if condition_dropout > 0:
        whole = own(torch.rand(count, generator=named("condition-dropout")) >= condition_dropout)
    keep: list[Keep] = [None] * train.accumulate if whole is None else list(whole)
    if part_dropout:
        parts = {
            name: own(torch.rand(count, generator=named(f"dropout of {name}")) >= rate)
            for name, rate in part_dropout.items()
        }
        if whole is not None:
            parts = {name: kept & whole for name, kept in parts.items()}
        keep = [{name: kept[micro] for name, kept in parts.items()} for micro in range(train.accumulate)]
    return [StepNoise(*parts_of) for parts_of in zip(_rows_of(sampled, own), noise, posterior, keep, strict=True)]


def _rows_of(sampled: RandomTimes, own: Callable[[Tensor], Tensor]) -> list[RandomTimes]:
    """The times of this rank for each micro-batch."""
    t = [RandomTimes(rows) for rows in own(sampled.t)]
    if sampled.part is None or sampled.importance is None:
        return t
    return [
        replace(one, part=part, importance=importance)
        for one, part, importance in zip(t, own(sampled.part), own(sampled.importance), strict=True)
    ]
