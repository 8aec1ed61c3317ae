"""The demo's time: what of each stage fits, measured on this machine and remembered for a resumed demo."""

from pathlib import Path

import typer

from sfumato.checkpoint import write_text
from sfumato.data.toyworld.dataset import ToyWorld, ToyWorldConfig
from sfumato.estimate import measure
from sfumato.fit.pace import LEAST, Run, fitted, with_steps
from sfumato.fit.phases import clock
from sfumato.fit.plan import CALL_SHARE
from sfumato.model import LatentDiffusion
from sfumato.plain_json import numbers_in, to_json
from sfumato.training.autoencoder_run import AutoencoderRun
from sfumato.training.diffusion_run import DiffusionRun
from sfumato.training.workers import Workers

TRIED = 8
"""Steps that are timed of each stage."""

SECONDS = " seconds"
"""Of a stage's name in the file, where it trains for a time."""

FIRST_SHARE = 0.24
"""Of the whole time, for stage 1; encoding, stage 2 and sampling follow."""


class Budget:
    """Fits configurations into `minutes`; with None it leaves them alone.

    A stage whose steps do not fit trains for a time instead, so that a moment in which the machine is busy costs the
    steps of that moment. What was chosen is kept in a JSON file.
    """

    def __init__(self, minutes: float | None, file: Path) -> None:
        self._seconds = None if minutes is None else 60 * minutes
        self._file = file
        self._chosen = numbers_in(file)

    def first_stage(self, config: AutoencoderRun) -> AutoencoderRun:
        """Stage 1 in its share of the time."""
        if self._seconds is None or "autoencoder" in self._chosen:
            return self._as_before("autoencoder", config)
        timing = measure.time_first_stage(config, "generator", _world(config), TRIED, Workers())
        return self._fit("autoencoder", config, timing, FIRST_SHARE * self._seconds)

    def second_stage(self, config: DiffusionRun, first: LatentDiffusion, elapsed: float, calls: int) -> DiffusionRun:
        """Stage 2 in the time that is left, `elapsed` seconds after the beginning, before sampling, which takes `calls`
        network calls."""
        if self._seconds is None or "diffusion" in self._chosen:
            return self._as_before("diffusion", config)
        timing, _ = measure.time_second_stage(config, first, _world(config), TRIED, Workers())
        sampling = CALL_SHARE * calls * timing.step / config.train.batch
        left = self._seconds - elapsed - sampling
        return self._fit("diffusion", config, timing, left)

    def _as_before(self, stage: str, config: Run) -> Run:
        if stage not in self._chosen:
            return config
        seconds = self._chosen.get(stage + SECONDS)
        return with_steps(config, max(1, int(self._chosen[stage])), seconds)

    def _fit(self, stage: str, asked: Run, timing: measure.Timing, seconds: float) -> Run:
        steps = fitted(asked, timing.step, seconds).train.steps
        self._chosen[stage] = steps
        if steps < asked.train.steps:
            self._chosen[stage + SECONDS] = max(_least(timing), seconds - _beside(asked, timing))
            typer.echo(
                f"      about {steps} of the configuration's {asked.train.steps} steps, {clock(timing.step)} each, "
                "so as to end in time; give more with --minutes",
                err=True,
            )
        write_text(self._file, to_json(self._chosen) + "\n")
        return self._as_before(stage, asked)


def _beside(config: Run, timing: measure.Timing) -> float:
    """Seconds of the previews and savings of a run, which are not counted as training."""
    train = config.train
    return train.steps / train.preview_every * timing.preview + train.steps / train.save_every * timing.save


def _least(timing: measure.Timing) -> float:
    """Seconds of the fewest steps that are worth training."""
    return LEAST * timing.step


def _world(config: AutoencoderRun | DiffusionRun) -> ToyWorld:
    assert isinstance(config.data, ToyWorldConfig)
    return config.data.build()
