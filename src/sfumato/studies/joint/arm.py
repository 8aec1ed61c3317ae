"""One arm of a study of joint training: its trainings and its measurements; each resumes where it was stopped."""

import json
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch

from sfumato.checkpoint import write_text
from sfumato.data.conditions.captions import texts_of, with_sampled_captions
from sfumato.data.dataset import Progress
from sfumato.data.loader import sweep
from sfumato.diffusion.schedule import build_schedule
from sfumato.images import image_grid, interleave, save_png
from sfumato.model import LatentDiffusion
from sfumato.model_folder import load
from sfumato.plain_json import to_json
from sfumato.report.measure import first_stage as measured_first_stage
from sfumato.studies.context import SHEET, finished
from sfumato.studies.evaluator import rows
from sfumato.studies.first import trained_first
from sfumato.studies.joint.plan import TWO_STAGE, Arm, JointStudyConfig, first_run, joint_run, second_run
from sfumato.studies.joint.result import HealthPoint, JointResult, load_result
from sfumato.studies.joint.scoring import Scorer
from sfumato.studies.second import second_folder, trained_diffusion
from sfumato.training.collapse import WARNED, collapse_warnings, mean_spread
from sfumato.training.coupling import normalises
from sfumato.training.data import RunData
from sfumato.training.encode import cached_latents
from sfumato.training.joint import train_joint
from sfumato.training.joint_model import joint_model, joint_networks, save_joint
from sfumato.training.joint_pass import JointNetworks
from sfumato.training.log import read_lines
from sfumato.training.previews import Reconstructions
from sfumato.training.run import RunFolder
from sfumato.training.second_stage import build_model
from sfumato.training.state import TrainState
from sfumato.training.workers import Workers

MEASURED = 256
"""Held-out images that are reconstructed at the end."""
LEAST = 100
"""Stage 2 has at least this part of the minutes, however long encoding took: a step or so, for a model to measure."""
SAMPLES_FILE, RECONSTRUCTIONS_FILE, RESULT_FILE, ENCODING_FILE = (
    "samples.png",
    "reconstructions.png",
    "result.json",
    "encoding.json",
)


@dataclass(frozen=True)
class JointContext:
    """Shared by all arms of a study."""

    config: JointStudyConfig
    data: RunData
    scorer: Scorer
    workers: Workers
    say: Callable[[str], None]
    progress: Callable[[str], Progress]


@dataclass(frozen=True)
class Trained:
    """A finished model, and what its training took; `log` is the run whose log has the reconstructions."""

    model: LatentDiffusion
    seconds: float
    steps: int
    second_steps: int
    log: Path
    normalised: bool


def run_arm(context: JointContext, arm: Arm, folder: Path) -> JointResult:
    """Trains and measures whatever is not finished yet. Raises Stopped after a signal."""
    done = folder / RESULT_FILE
    if done.exists():
        return load_result(done)
    trained = (_one_after_the_other if arm.way == TWO_STAGE else _at_once)(context, arm, folder)
    source = context.data.measured
    batches = sweep(source, 32, rows(source, MEASURED), unreadable=lambda row, error: None)
    originals = torch.cat([batch.images for batch in batches])
    first, output = measured_first_stage(trained.model, originals)
    pairs = interleave(originals[: SHEET // 2], output[: SHEET // 2])
    save_png(folder / RECONSTRUCTIONS_FILE, image_grid(pairs, columns=8))
    scored = context.scorer(trained.model)
    if scored.images is not None:
        save_png(folder / SAMPLES_FILE, image_grid(scored.images[:SHEET], columns=8))
    lines = read_lines(trained.log / "log.jsonl")
    result = JointResult(
        way=arm.way,
        seed=arm.seed,
        seconds=trained.seconds,
        steps=trained.steps,
        second_steps=trained.second_steps,
        psnr=first.psnr,
        kernel=None if scored.score is None else scored.score.kernel,
        kernel_std=None if scored.score is None else scored.score.kernel_std,
        facts=scored.facts,
        collapsed=collapsed(lines, trained.normalised),
        curve=health_curve(lines),
    )
    result.save(done)
    shutil.rmtree(folder / "cache", ignore_errors=True)  # nothing else reads it
    return result


def _at_once(context: JointContext, arm: Arm, folder: Path) -> Trained:
    """Both stages in one training."""
    config, images = joint_run(context.config, arm), context.data.training
    home = RunFolder(folder / "joint")
    reconstructions = Reconstructions.of(
        context.data.measured, config.train.preview_images, home.previews, config.train.precision
    )
    model = joint_model(config, images, texts_of(images)).to(context.workers.device)

    def export(joint: JointNetworks, state: TrainState) -> None:
        save_joint(config, model, joint, home, state)

    with home.session(context.workers):
        home.claim(config)
        state = train_joint(
            config,
            joint_networks(model),
            build_schedule(config.schedule),
            with_sampled_captions(images, images),
            home,
            lambda joint, step: reconstructions(joint.autoencoder, step),
            export,
            context.workers,
        )
    seconds = finished(state)
    trained = load(home.path, context.workers.device)
    return Trained(trained, seconds, state.step, 0, home.path, normalises(config.coupling))


def _one_after_the_other(context: JointContext, arm: Arm, folder: Path) -> Trained:
    """Stage 1, encoding and stage 2, which has the minutes that the others left."""
    stage_1 = folder / "autoencoder"
    first_state = trained_first(first_run(context.config, arm), context.data, stage_1, context.workers)
    first = load(stage_1, context.workers.device)
    images, file = context.data.training, folder / ENCODING_FILE
    t_start = time.monotonic()
    latents = cached_latents(first, images, folder / "cache", progress=context.progress("encoding"))
    if not file.exists():  # of a session that was stopped in the encoding only the last part counts
        write_text(file, to_json({"seconds": time.monotonic() - t_start}) + "\n")
    encoding = float(json.loads(file.read_text(encoding="utf-8"))["seconds"])
    left = context.config.minutes - (first_state.seconds + encoding) / 60
    context.say(f"encoding took {encoding:.0f} s: stage 2 has {max(0.0, 60 * left):.0f} s")
    run = second_run(context.config, arm, max(left, context.config.minutes / LEAST))
    texts = texts_of(images)
    model = build_model(run, first, latents, texts=texts).to(context.workers.device)
    state = trained_diffusion(
        run, model, with_sampled_captions(latents, images), folder, lambda networks, step: {}, context.workers
    )
    seconds = first_state.seconds + encoding + state.seconds
    trained = load(second_folder(folder), context.workers.device)
    return Trained(trained, seconds, first_state.step, state.step, stage_1, True)


Lines = list[dict[str, object]]


def health_curve(lines: Lines) -> tuple[HealthPoint, ...]:
    """The measurements of held-out images in a run's log, each with the training seconds logged for its step."""
    seconds = {line["step"]: line["seconds"] for line in lines if "seconds" in line}
    found = []
    for line in lines:
        spread = mean_spread(line)
        if spread is None or line["step"] not in seconds:
            continue
        numbers = (seconds[line["step"]], line["psnr"], spread, line.get("effective_rank", 0.0))
        found.append(HealthPoint(*(float(str(number)) for number in numbers)))
    return tuple(found)


def collapsed(lines: Lines, normalised: bool) -> tuple[str, ...]:
    """Warnings in a run's own log."""
    notes: dict[str, object] = {}
    for line in lines:
        if mean_spread(line) is not None:
            collapse_warnings(line, notes, normalised)  # type: ignore[arg-type]  # as they were written
    warned = notes.get(WARNED, [])
    assert isinstance(warned, list)
    return tuple(warned)
