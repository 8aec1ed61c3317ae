"""The demo's time: how many steps of each stage fit, measured on this machine and remembered for a resumed demo."""

import json
from pathlib import Path

import typer

from sfumato.checkpoint import write_text
from sfumato.cli.pace import Run, fitted, seconds_per_step, with_steps
from sfumato.cli.phases import Phases, clock
from sfumato.data.latents import LatentDataset
from sfumato.data.toyworld.dataset import ToyWorldConfig
from sfumato.model import LatentDiffusion
from sfumato.training.autoencoder import AutoencoderRun, train_autoencoder
from sfumato.training.diffusion import DiffusionRun, train_diffusion
from sfumato.training.run import RunFolder
from sfumato.training.second_stage import begin, steered
from sfumato.training.state import TrainState

FIRST_SHARE = 0.36
"""Of the whole time, for stage 1; encoding, stage 2 and drawing follow."""
CALL_SHARE = 0.35
"""A network call without gradients, of a training step's time per picture."""


class Budget:
    """Fits configurations into `minutes`; with None it leaves them alone. Chosen steps are kept in a JSON file."""

    def __init__(self, minutes: float | None, phases: Phases, file: Path) -> None:
        self._seconds = None if minutes is None else 60 * minutes
        self._phases, self._file = phases, file
        self._chosen: dict[str, int] = json.loads(file.read_text(encoding="utf-8")) if file.exists() else {}

    def first_stage(self, config: AutoencoderRun) -> AutoencoderRun:
        """Stage 1 in its share of the time."""
        if self._seconds is None or "autoencoder" in self._chosen:
            return self._as_before("autoencoder", config)
        assert isinstance(config.data, ToyWorldConfig)
        data = config.data.build()

        def train(brief: AutoencoderRun, folder: RunFolder) -> TrainState:
            return train_autoencoder(brief, data, folder, lambda networks, step: {}, lambda networks, state: None)

        pace = seconds_per_step(config, train)
        return self._remember("autoencoder", fitted(config, pace, FIRST_SHARE * self._seconds), config, pace)

    def second_stage(
        self, config: DiffusionRun, first: LatentDiffusion, latents: LatentDataset, calls: int
    ) -> DiffusionRun:
        """Stage 2 in the time that is left before drawing, which takes `calls` network calls."""
        if self._seconds is None or "diffusion" in self._chosen:
            return self._as_before("diffusion", config)
        model = begin(config, first, latents)
        assert model.second is not None
        schedule = model.second.schedule

        def train(brief: DiffusionRun, folder: RunFolder) -> TrainState:
            return train_diffusion(
                brief,
                steered(model),
                schedule,
                model.autoencoder,
                model.scaling,
                latents,
                folder,
                lambda networks, step: {},
                lambda networks, state: None,
            )

        pace = seconds_per_step(config, train)
        drawing = CALL_SHARE * calls * pace / config.train.batch
        left = self._seconds - self._phases.elapsed - drawing
        return self._remember("diffusion", fitted(config, pace, left), config, pace)

    def _as_before(self, stage: str, config: Run) -> Run:
        return with_steps(config, self._chosen[stage]) if stage in self._chosen else config

    def _remember(self, stage: str, config: Run, asked: Run, pace: float) -> Run:
        self._chosen[stage] = config.train.steps
        write_text(self._file, json.dumps(self._chosen) + "\n")
        if config.train.steps < asked.train.steps:
            typer.echo(
                f"      {config.train.steps} of the configuration's {asked.train.steps} steps, {clock(pace)} each, "
                "so as to end in time; give more with --minutes",
                err=True,
            )
        return config
