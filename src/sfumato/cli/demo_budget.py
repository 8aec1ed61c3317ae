"""The demo's time: what of each stage fits, measured on this machine and remembered for a resumed demo."""

import time
from collections.abc import Callable
from pathlib import Path

import typer

from sfumato.checkpoint import write_text
from sfumato.data.toyworld.dataset import ToyWorld, ToyWorldConfig
from sfumato.estimate import measure
from sfumato.estimate.measure import Timing
from sfumato.fit.pace import Run, fitted, with_steps
from sfumato.fit.phases import clock
from sfumato.fit.plan import CALL_SHARE
from sfumato.model import LatentDiffusion
from sfumato.plain_json import numbers_in, to_json
from sfumato.training.autoencoder_run import AutoencoderRun
from sfumato.training.diffusion_run import DiffusionRun
from sfumato.training.workers import Workers

TRIED = 8
"""Steps that are timed of each stage."""

NEARLY = 0.97
"""Of a stage's steps: if this many fit, all are trained."""

LEAST_SECONDS = 0.1
"""Of a stage for which no time is left: it trains for its fewest steps."""

NAMES = {"autoencoder": "stage 1", "diffusion": "stage 2"}

SECONDS = " seconds"
"""Of a stage's name in the file, where it trains for a time."""

MINUTES = "minutes"
"""In the file: what the demo was asked for when the length of its first stage was chosen."""

FIRST_SHARE = 0.24
"""Of the whole time, for stage 1; encoding, stage 2 and sampling follow."""

BESIDE_MOST = 0.5
"""Of a stage's time for its previews and savings: those that seem to take more were measured at a busy moment."""


class Budget:
    """Fits configurations into `minutes`; with None it leaves them alone.

    A stage whose steps do not fit trains for a time instead, and for its configuration's steps at the most: what is
    measured in a moment in which the machine is busy, costs the steps of that moment only. What was chosen is kept in
    a JSON file.
    """

    def __init__(self, minutes: float | None, file: Path) -> None:
        self._file = file
        self._chosen = numbers_in(file)
        self.minutes = minutes if minutes is None else self._chosen.get(MINUTES, minutes)
        """The minutes that the lengths are chosen for: those of the demo's first session."""
        self._seconds = None if self.minutes is None else 60 * self.minutes
        if self.minutes != minutes:
            typer.echo(
                f"      this demo was started with --minutes {self.minutes:g} and keeps them instead of {minutes:g}",
                err=True,
            )

    def first_stage(self, config: AutoencoderRun) -> AutoencoderRun:
        """Stage 1 in its share of the time."""
        if self._seconds is None or "autoencoder" in self._chosen:
            return self._as_before("autoencoder", config)
        whole = FIRST_SHARE * self._seconds
        return self._fit(
            "autoencoder",
            config,
            lambda: measure.time_first_stage(config, "generator", _world(config), TRIED, Workers()),
            lambda timing: whole,
        )

    def second_stage(self, config: DiffusionRun, first: LatentDiffusion, elapsed: float, calls: int) -> DiffusionRun:
        """Stage 2 in the time that is left, `elapsed` seconds after the beginning, before sampling, which takes `calls`
        network calls."""
        if self._seconds is None or "diffusion" in self._chosen:
            return self._as_before("diffusion", config)
        left = self._seconds - elapsed
        return self._fit(
            "diffusion",
            config,
            lambda: measure.time_second_stage(config, first, _world(config), TRIED, Workers())[0],
            lambda timing: left - CALL_SHARE * calls * timing.step / config.train.batch,
        )

    def _as_before(self, stage: str, config: Run) -> Run:
        if stage not in self._chosen:
            return config
        seconds = self._chosen.get(stage + SECONDS)
        return with_steps(config, max(1, int(self._chosen[stage])), seconds)

    def _fit(self, stage: str, asked: Run, timed: Callable[[], Timing], left: Callable[[Timing], float]) -> Run:
        """The stage in the seconds that `left` gives; writes what was chosen into the file."""
        assert self.minutes is not None
        t_start = time.monotonic()
        timing = timed()
        if _fitting(asked, timing, left(timing)) < asked.train.steps:  # perhaps it was a busy moment
            timing = min(timing, timed(), key=lambda one: one.step)
        seconds = left(timing) - (time.monotonic() - t_start)
        steps = _fitting(asked, timing, seconds)
        self._chosen |= {MINUTES: self.minutes, stage: steps}
        if steps < asked.train.steps:
            seconds = self._chosen[stage + SECONDS] = max(
                LEAST_SECONDS, (1 - BESIDE_MOST) * seconds, seconds - _beside(asked, timing)
            )
            typer.echo(
                f"      {NAMES[stage]} trains for {clock(seconds)}: of the {asked.train.steps:,} steps of its "
                f"configuration about {steps:,} fit, as one takes {1000 * timing.step:,.0f} ms now; "
                "give more --minutes for more",
                err=True,
            )
        write_text(self._file, to_json(self._chosen) + "\n")
        return self._as_before(stage, asked)


def _fitting(config: Run, timing: Timing, seconds: float) -> int:
    """The steps that fit into the seconds, all if nearly all do."""
    steps = fitted(config, timing.step, seconds).train.steps
    return config.train.steps if steps >= NEARLY * config.train.steps else steps


def _beside(config: Run, timing: Timing) -> float:
    """Seconds of the previews and savings of a run, which are not counted as training."""
    train = config.train
    return train.steps / train.preview_every * timing.preview + train.steps / train.save_every * timing.save


def _world(config: AutoencoderRun | DiffusionRun) -> ToyWorld:
    assert isinstance(config.data, ToyWorldConfig)
    return config.data.build()
