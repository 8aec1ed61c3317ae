"""How many training steps fit into a given time on this machine: a few are tried, with the real networks and data."""

import statistics
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TypeVar

from sfumato.training.autoencoder import AutoencoderRun
from sfumato.training.diffusion import DiffusionRun
from sfumato.training.log import read_lines
from sfumato.training.run import RunFolder
from sfumato.training.state import TrainState

TRIED = 10
SETTLING = 3  # the first steps also build kernels and fill caches
LEAST = 200  # fewer teach nothing

Run = TypeVar("Run", AutoencoderRun, DiffusionRun)


def seconds_per_step(config: Run, train: Callable[[Run, RunFolder], TrainState]) -> float:
    """The median time of a few steps of `train(config, folder)`, which runs in a folder that is thrown away."""
    brief = config.train.model_copy(update={"steps": SETTLING + TRIED, "log_every": 1})
    with TemporaryDirectory() as place:
        train(config.model_copy(update={"train": brief}), RunFolder(Path(place)))
        stamps = [line["seconds"] for line in read_lines(Path(place) / "log.jsonl") if "seconds" in line]
    return statistics.median(later - earlier for earlier, later in pairwise(stamps[SETTLING - 1 :]))


def fitted(config: Run, pace: float, seconds: float) -> Run:
    """The configuration with as many steps of `pace` seconds as fit, its own number at the most.

    The shape of the learning rate goes along: it is a function of the share of the steps done.
    """
    steps = max(min(LEAST, config.train.steps), min(config.train.steps, int(seconds / pace)))
    return with_steps(config, steps)


def with_steps(config: Run, steps: int) -> Run:
    """The configuration with another number of steps; saved and previewed as many times as before."""
    train, scale = config.train, steps / config.train.steps
    every = {name: max(1, round(getattr(train, name) * scale)) for name in ("log_every", "preview_every", "save_every")}
    return config.model_copy(update={"train": train.model_copy(update={"steps": steps, **every})})
