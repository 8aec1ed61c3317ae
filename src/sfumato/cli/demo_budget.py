"""The demo's time: how many steps of each stage fit, measured on this machine and remembered for a resumed demo."""

from pathlib import Path

import typer

from sfumato.checkpoint import write_text
from sfumato.data.toyworld.dataset import ToyWorld, ToyWorldConfig
from sfumato.estimate import measure
from sfumato.fit.pace import Run, fitted, with_steps
from sfumato.fit.phases import clock
from sfumato.fit.plan import CALL_SHARE, SUSTAINED
from sfumato.model import LatentDiffusion
from sfumato.plain_json import numbers_in, to_json
from sfumato.training.autoencoder import AutoencoderRun
from sfumato.training.diffusion import DiffusionRun
from sfumato.training.workers import Workers

TRIED = 8
"""Steps that are timed of each stage."""

FIRST_SHARE = 0.24
"""Of the whole time, for stage 1; encoding, stage 2 and sampling follow."""


class Budget:
    """Fits configurations into `minutes`; with None it leaves them alone. Chosen steps are kept in a JSON file."""

    def __init__(self, minutes: float | None, file: Path) -> None:
        self._seconds = None if minutes is None else 60 * minutes
        self._file = file
        self._chosen = {stage: max(1, int(steps)) for stage, steps in numbers_in(file).items()}

    def first_stage(self, config: AutoencoderRun) -> AutoencoderRun:
        """Stage 1 in its share of the time."""
        if self._seconds is None or "autoencoder" in self._chosen:
            return self._as_before("autoencoder", config)
        pace = measure.time_first_stage(config, "generator", _world(config), TRIED, Workers()).step
        return self._fit("autoencoder", config, pace, FIRST_SHARE * self._seconds)

    def second_stage(self, config: DiffusionRun, first: LatentDiffusion, elapsed: float, calls: int) -> DiffusionRun:
        """Stage 2 in the time that is left, `elapsed` seconds after the beginning, before sampling, which takes `calls`
        network calls."""
        if self._seconds is None or "diffusion" in self._chosen:
            return self._as_before("diffusion", config)
        timing, _ = measure.time_second_stage(config, first, _world(config), TRIED, Workers())
        sampling = CALL_SHARE * calls * timing.step / config.train.batch
        left = self._seconds - elapsed - sampling
        return self._fit("diffusion", config, timing.step, left)

    def _as_before(self, stage: str, config: Run) -> Run:
        return with_steps(config, self._chosen[stage]) if stage in self._chosen else config

    def _fit(self, stage: str, asked: Run, pace: float, seconds: float) -> Run:
        config = fitted(asked, SUSTAINED * pace, seconds)
        self._chosen[stage] = config.train.steps
        write_text(self._file, to_json(self._chosen) + "\n")
        if config.train.steps < asked.train.steps:
            typer.echo(
                f"      {config.train.steps} of the configuration's {asked.train.steps} steps, {clock(pace)} each, "
                "so as to end in time; give more with --minutes",
                err=True,
            )
        return config


def _world(config: AutoencoderRun | DiffusionRun) -> ToyWorld:
    assert isinstance(config.data, ToyWorldConfig)
    return config.data.build()
