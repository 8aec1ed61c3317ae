"""Runs a study of latent spaces: its folder, its first stages, its second stages one after the other, and the page."""

import json
import shutil
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

from sfumato.checkpoint import write_text
from sfumato.config import parse, parse_mapping
from sfumato.data.dataset import Dataset, Progress
from sfumato.errors import UserError
from sfumato.estimate import measure
from sfumato.model import ModelConfig, build
from sfumato.plain_json import to_json
from sfumato.studies.folder import CONFIG_FILE, claim, run_in_turn
from sfumato.studies.latents.context import LatentsContext, Pace
from sfumato.studies.latents.first import first_stages, model_of
from sfumato.studies.latents.page import render
from sfumato.studies.latents.plan import STAGE_ONE, LatentsStudyConfig, chosen, first_run, second_run
from sfumato.studies.latents.result import SecondResult
from sfumato.studies.latents.scoring import scorer_for
from sfumato.studies.latents.second import second_stage
from sfumato.studies.latents.spaces import PLAIN, SPACES, LatentSpace
from sfumato.studies.latents.statistics import conclusion, standings
from sfumato.studies.step_cost import STEP_COST_FILE, TIMED
from sfumato.training.alignment import build_alignment
from sfumato.training.data import height_width, open_data
from sfumato.training.workers import Workers

STEPS_FILE = "steps.json"
UNKNOWN_PACE = Pace(0.05, 0.1)
"""Where the steps are given and nothing needs to be measured: it only decides how often a training is saved."""


def run_latents_study(
    config: LatentsStudyConfig,
    folder: Path,
    features: str,
    shared: Path | None,
    workers: Workers,
    command: str,
    say: Callable[[str], None],
    progress: Callable[[str], Progress],
) -> list[SecondResult]:
    """Runs what is unfinished of a study in `folder`, and writes its page after each second stage.

    Args:
        features: the feature network of the kernel distance, for images other than the toy world's.
        shared: another study's folder whose first stages are used, and trained there where they are missing.

    Raises:
        UserError: the folder contains another study, or `shared` one with other first stages.
        Stopped: after a signal.
    """
    claim(config, folder, may_grow)
    home, spaces = first_home(config, folder, shared), chosen(config)
    for space in spaces:  # what a first stage lacks is refused before any of them is trained
        build_alignment(first_run(config, space, TIMED).loss.alignment, config.latent[0], config.first_seed, workers)
    data = open_data(config.data, config.held_out, folder, folder / "cache", say, progress)
    pace = _pace(config, data.training, folder, workers, say)
    scorer = scorer_for(config, data.training, features, folder / "reference.safetensors", workers)
    context = LatentsContext(config, data, scorer, pace, workers, say, progress)
    firsts = first_stages(context, spaces, _first_steps(config, pace, home), home)
    steps = config.steps or max(1, round(60 * config.minutes / pace.second))

    def run(one: tuple[LatentSpace, int]) -> SecondResult:
        space, seed = one
        cache, place = folder / "cache" / space.name, folder / f"{space.name}-seed{seed}"
        return second_stage(context, space, seed, steps, model_of(space, home), place, cache)

    results = run_in_turn(
        [(space, seed) for seed in range(config.seeds) for space in spaces],
        folder,
        workers,
        say,
        lambda one: f"{one[0].name}, seed {one[1]}: {steps} steps of stage 2",
        run,
        lambda results, where: render(config, scorer, firsts, results, folder, home, where, command),
    )
    shutil.rmtree(folder / "cache", ignore_errors=True)  # large, and nothing else reads it
    say(conclusion(standings(results, scorer.better), firsts, scorer.shown)[1])
    return results


def may_grow(name: str, old: object, new: object) -> bool:
    """Whether a setting of a study may change like this: further seeds and latent spaces add to what is there."""
    if name == "seeds":
        return isinstance(old, int) and isinstance(new, int) and new > old
    return name == "spaces" and isinstance(old, tuple) and isinstance(new, tuple) and set(old) < set(new)


def first_home(config: LatentsStudyConfig, folder: Path, shared: Path | None) -> Path:
    """Where the first stages are. Raises UserError if those of another study would not be the same."""
    if shared is None:
        return folder / "first"
    file = shared / CONFIG_FILE
    if not file.is_file():
        raise UserError(f"--first-stages {str(shared)!r} is not the folder of a study of latent spaces")
    other = parse(parse_mapping(file.read_text(encoding="utf-8"), str(file)), LatentsStudyConfig, str(file))
    for name in STAGE_ONE:
        old, new = getattr(other, name), getattr(config, name)
        if old != new:
            raise UserError(
                f"--first-stages {str(shared)!r} contains first stages with {name} = {old!r}, not {new!r}: give the "
                "same settings, or leave the option out"
            )
    return shared / "first"


def _first_steps(config: LatentsStudyConfig, pace: Pace, home: Path) -> int:
    """The steps of every first stage: decided once, also for studies that share them."""
    file = home / STEPS_FILE
    if not file.exists():
        steps = config.first_steps or max(2, round(60 * config.first_minutes / pace.first))
        write_text(file, to_json({"steps": steps}) + "\n")
    return int(json.loads(file.read_text(encoding="utf-8"))["steps"])


def _pace(
    config: LatentsStudyConfig, data: Dataset, folder: Path, workers: Workers, say: Callable[[str], None]
) -> Pace:
    """The pace of this machine, read from the folder or measured with an untrained first stage."""
    if config.steps is not None and config.first_steps is not None:
        return UNKNOWN_PACE
    file = folder / STEP_COST_FILE
    if file.exists():
        return Pace(**json.loads(file.read_text(encoding="utf-8")))
    say("timing a few steps")
    first = first_run(config, SPACES[PLAIN], TIMED)
    model = build(ModelConfig(autoencoder=first.model, image_size=height_width(config.data))).to(workers.device)
    pace = Pace(
        measure.time_first_stage(first, "generator", data, TIMED, workers, alone=True).step,
        measure.time_second_stage(second_run(config, 0, TIMED), model, data, TIMED, workers, alone=True)[0].step,
    )
    write_text(file, to_json(asdict(pace), indent=1) + "\n")
    return pace
