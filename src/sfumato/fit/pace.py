"""Configurations with another number of steps: as many as fit into a given time."""

from typing import TypeVar

from sfumato.training.autoencoder_run import AutoencoderRun
from sfumato.training.diffusion_run import DiffusionRun

LEAST = 200  # fewer teach nothing
LEAST_WARMUP = 30

Run = TypeVar("Run", AutoencoderRun, DiffusionRun)


def fitted(config: Run, pace: float, seconds: float) -> Run:
    """The configuration with as many steps of `pace` seconds as fit, its own number at the most.

    The shape of the learning rate goes along: it is a function of the share of the steps done.
    """
    steps = max(min(LEAST, config.train.steps), min(config.train.steps, int(seconds / pace)))
    return with_steps(config, steps)


def refitted(config: Run, pace: float, seconds: float, most: int) -> Run:
    """The configuration with as many steps of `pace` seconds as fit, `most` at the most, LEAST or its own number at
    least; unchanged where its own number is within a tenth of that."""
    steps = min(most, max(min(LEAST, config.train.steps), int(seconds / pace)))
    return config if abs(steps / config.train.steps - 1) <= 0.1 else with_steps(config, steps)


def with_steps(config: Run, steps: int, seconds: float | None = None) -> Run:
    """The configuration with another number of steps; saved and previewed as many times as before.

    With `seconds` it trains for that time, its own number of steps at the most, and `steps` is about what will fit.
    The optimiser's warm-up goes along too: one made for a long run would be a good part of a short one.
    """
    train, scale = config.train, steps / config.train.steps
    warmup = min(train.optimiser.warmup_steps, max(LEAST_WARMUP, round(train.optimiser.warmup_steps * scale)))
    optimiser = train.optimiser.model_copy(update={"warmup_steps": warmup})
    length: dict[str, object] = {"steps": steps, "minutes": None, "step_limits": None}
    if seconds is not None:
        length |= {"minutes": round(seconds / 60, 4), "step_limits": (min(LEAST, train.steps), train.steps)}
    every = {name: max(1, round(getattr(train, name) * scale)) for name in ("log_every", "preview_every", "save_every")}
    return config.model_copy(update={"train": train.model_copy(update={**length, "optimiser": optimiser, **every})})
