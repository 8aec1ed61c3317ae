"""Measures a machine for a plan: steps of the real training loops, at the real sizes, of the networks it chooses."""

from collections.abc import Callable
from contextlib import redirect_stderr
from dataclasses import replace
from io import StringIO
from pathlib import Path
from typing import Protocol

import torch

from sfumato.autoencoder.efficientnet import weights_path
from sfumato.conditioning.table import NoneConfig
from sfumato.data.conditions.config import ConditionsConfig
from sfumato.engine.precision import has_fast_bfloat16
from sfumato.errors import UserError
from sfumato.estimate import measure
from sfumato.estimate.memory import parameters
from sfumato.estimate.synthetic import SyntheticImages
from sfumato.fit.configs import autoencoder_run, diffusion_run
from sfumato.fit.facts import DataFacts, MachineFacts, Pace
from sfumato.fit.memory import free_memory
from sfumato.fit.networks import FIRST, SECOND
from sfumato.fit.plan import FitPlan, make_plan
from sfumato.model import ModelConfig, build
from sfumato.nn.init import without_weights
from sfumato.report.machine import processor
from sfumato.training.autoencoder import untrained_autoencoder
from sfumato.training.data import height_width
from sfumato.training.workers import Workers, available_cores

TIMED = 3
"""Steps that are timed of each network."""
ROUNDS = 3
"""A plan is made again with what was measured, at most so often."""
GUESS = {"cpu": 2e10, "cuda": 1e12}
"""Operations a second of a first guess, which chooses what is measured first."""
LEAST_SECONDS = 300.0
"""The first guess is for at least this time."""


class Timer(Protocol):
    """Measures the networks of a plan: of stage 1, of stage 2."""

    def first(self, plan: FitPlan) -> Pace: ...

    def second(self, plan: FitPlan) -> Pace: ...


class StepTimer:
    """Times a few steps with the user's settings. Raises Interrupted after a signal."""

    def __init__(self, workers: Workers, settings: tuple[str, ...] = ()) -> None:
        self.workers = workers
        self.settings = settings

    def first(self, plan: FitPlan) -> Pace:
        """The autoencoder of the plan, on random images."""
        config = autoencoder_run(plan, Path("images"), self.settings)
        data = SyntheticImages(height_width(config.data))
        with redirect_stderr(StringIO()):  # the bars of the timed steps
            timing = measure.time_first_stage(config, "generator", data, TIMED, self.workers, alone=True)
        with without_weights():
            count = parameters([untrained_autoencoder(config)])
        each = timing.step / (config.train.batch * config.train.accumulate)
        return Pace(each, first_operations(plan), count, timing.peak_memory)

    def second(self, plan: FitPlan) -> Pace:
        """The denoiser of the plan with its conditioner, on random latents; maps and boxes are not timed."""
        config = diffusion_run(plan, Path("images"), self.settings)
        if config.conditions.gives:
            config = config.model_copy(update={"conditioner": NoneConfig(), "conditions": ConditionsConfig()})
        model = autoencoder_run(plan, Path("images"), self.settings).model
        size = height_width(config.data)
        first = build(ModelConfig(autoencoder=model, image_size=size)).to(self.workers.device)
        with redirect_stderr(StringIO()):
            timing, made = measure.time_second_stage(
                config, first, SyntheticImages(size), TIMED, self.workers, alone=True
            )
        assert made.second is not None
        each = timing.step / (config.train.batch * config.train.accumulate)
        count = parameters([made.second.denoiser, made.second.conditioner])
        return Pace(each, second_operations(plan), count, timing.peak_memory)


def measured_plan(
    data: DataFacts,
    machine: MachineFacts,
    seconds: float,
    timer: Timer,
    size: int | None = None,
    say: Callable[[str], None] | None = None,
) -> FitPlan:
    """The plan after measuring what it needs: made from a guess, measured, and made again until it stays.

    Raises UserError as `make_plan` does; too short a time only after measuring.
    """
    guess = _guessed(machine)
    plan = make_plan(data, guess, max(seconds, LEAST_SECONDS), size)
    for _ in range(ROUNDS):
        missing = [key for stage, key in _keys(plan) if key not in getattr(machine, stage)]
        if not missing:
            break
        if plan.first.key not in machine.first:
            _tell(say, f"timing the {plan.first.network} autoencoder at {plan.size} pixels")
            machine = replace(machine, first={**machine.first, plan.first.key: timer.first(plan)})
        if plan.second.key not in machine.second:
            _tell(say, f"timing the {plan.second.network} denoiser on {plan.latent_side}x{plan.latent_side} latents")
            machine = replace(machine, second={**machine.second, plan.second.key: timer.second(plan)})
        plan = make_plan(data, machine, seconds, size)
    return plan


def first_operations(plan: FitPlan) -> float:
    """The operations by which the plan's autoencoder is compared with others."""
    network = next(each for each in FIRST if each.name == plan.first.network)
    return network.operations(plan.size, plan.factor) * (1.5 if plan.perceptual else 1)


def second_operations(plan: FitPlan) -> float:
    """As `first_operations`, of the denoiser."""
    network = next(each for each in SECOND if each.name == plan.second.network)
    return network.operations(plan.latent_side)


def machine_facts(workers: Workers, read_seconds: float) -> MachineFacts:
    """The facts about this machine before a network is timed."""
    device = workers.device
    on_gpu = device.type == "cuda"
    return MachineFacts(
        name=torch.cuda.get_device_name(device) if on_gpu else processor(),
        device="cuda" if on_gpu else "cpu",
        cores=available_cores(),
        memory=torch.cuda.mem_get_info(device)[0] if on_gpu else free_memory(),
        read_seconds=read_seconds,
        reduced=has_fast_bfloat16(device),
        features=has_features(),
    )


def has_features() -> bool:
    """Whether the feature network of the perceptual loss is installed."""
    try:
        weights_path()
    except UserError:
        return False
    return True


def _guessed(machine: MachineFacts) -> MachineFacts:
    known = {"guess": Pace(1.0, GUESS[machine.device])}
    return replace(machine, first=known, second=known)


def _keys(plan: FitPlan) -> list[tuple[str, str]]:
    return [("first", plan.first.key), ("second", plan.second.key)]


def _tell(say: Callable[[str], None] | None, message: str) -> None:
    if say is not None:
        say(message)
