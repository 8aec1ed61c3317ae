"""Both stages in one folder, one after the other, as `sfumato fit` and `sfumato demo` train them."""

import os
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from sfumato.cli.progress import bars
from sfumato.cli.training_runs import run_autoencoder, run_diffusion
from sfumato.errors import UserError
from sfumato.fit.folder import AUTOENCODER, CACHE, DIFFUSION
from sfumato.fit.phases import Phases
from sfumato.model import LatentDiffusion
from sfumato.model_folder import load
from sfumato.report.result import Training
from sfumato.training.autoencoder_run import AutoencoderRun
from sfumato.training.data import open_data
from sfumato.training.diffusion_run import DiffusionRun
from sfumato.training.encode import cached_latents
from sfumato.training.overall import Overall, Part, shown_in
from sfumato.training.state import TrainState

FIRST, ENCODING, SECOND = (
    "training stage 1, the autoencoder",
    "encoding the images",
    "training stage 2, the diffusion model",
)


@dataclass(frozen=True)
class Trained:
    """A model after both trainings, their final states, and the configuration of stage 2 as it was trained."""

    model: LatentDiffusion
    first: TrainState
    second: TrainState
    config: DiffusionRun


def train_both(
    first_config: AutoencoderRun,
    planned: DiffusionRun,
    fitted: Callable[[LatentDiffusion, float], DiffusionRun],
    out: Path,
    place: torch.device,
    phases: Phases,
) -> Trained:
    """Trains stage 1, encodes, trains stage 2; what is done already is not done again.

    `fitted` gives the configuration of stage 2, whose length may follow the time, from the first stage and the seconds
    that went by before, over all sessions. Raises typer.Exit after an interruption.
    """
    with phases(FIRST):
        first_state = run_autoencoder(first_config, out / AUTOENCODER, out / CACHE)
    first = load(out / AUTOENCODER, place)
    with phases(ENCODING):
        cache_latents(planned, first, out / DIFFUSION, out / CACHE)
    # a session that was killed left no time of its phase, but its steps' time
    elapsed = phases.elapsed + max(0.0, first_state.seconds - phases.seconds[FIRST])
    with phases(SECOND):
        config = fitted(first, elapsed)
        second_state = run_diffusion(config, first, out / DIFFUSION, out / CACHE)
    return Trained(load(out / DIFFUSION, place), first_state, second_state, config)


def one_bar(title: str, seconds: Sequence[tuple[str, float]]) -> AbstractContextManager[Overall | None]:
    """A bar for all phases of these names and planned seconds; none where there is no plan."""
    if not seconds:
        return nullcontext()
    return shown_in(Overall(title, [Part(name, planned, name in (FIRST, SECOND)) for name, planned in seconds]))


def choose_device(name: str) -> torch.device:
    """The device of a name, "auto" being CUDA where there is one. Raises UserError for an unknown or absent one."""
    if name not in ("auto", "cpu", "cuda"):
        raise UserError(f"--device {name!r} is not one of auto, cpu, cuda")
    if name == "cuda" and not torch.cuda.is_available():
        raise UserError("--device cuda: torch sees no CUDA device here; use --device cpu or a torch built for CUDA")
    if name == "cpu":
        os.environ["ACCELERATE_USE_CPU"] = "true"  # accelerate, and so both trainings, read this
    return torch.device("cuda" if name != "cpu" and torch.cuda.is_available() else "cpu")


def cache_latents(config: DiffusionRun, first: LatentDiffusion, folder: Path, cache: Path) -> None:
    """The pass with which `sfumato train diffusion` begins, as a phase of its own; what is cached stays cached."""
    with bars() as (say, progress):
        data = open_data(config.data, config.held_out, folder, cache, say, progress, config.conditions)
        cached_latents(first, data.training, cache, config.mirrored, progress=progress("encoding"))


def second_parts(model: LatentDiffusion) -> list[nn.Module]:
    """The trained parts of stage 2: denoiser and conditioner."""
    return [part for name, part in model.parts().items() if name in ("denoiser", "conditioner")]


def training(config: str, state: TrainState, parts: list[nn.Module], configured: int) -> Training:
    """The numbers of a finished run, of as many steps as are configured or fewer."""
    parameters = sum(p.numel() for part in parts for p in part.parameters())
    left_out = configured if state.step < configured else None
    return Training(config, state.step, state.images, round(state.seconds, 2), parameters, left_out)
