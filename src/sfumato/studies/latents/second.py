"""The second stages of a study: trained in the same way on the latents of every first stage, and scored."""

from pathlib import Path

from sfumato.engine.precision import autocast
from sfumato.estimate.memory import parameters
from sfumato.images import image_grid, save_png
from sfumato.model import LatentDiffusion
from sfumato.model_folder import load
from sfumato.studies.context import SHEET
from sfumato.studies.latents.context import LatentsContext
from sfumato.studies.latents.plan import second_run
from sfumato.studies.latents.result import ScorePoint, SecondResult, load_second
from sfumato.studies.latents.scoring import SampleScore
from sfumato.studies.latents.spaces import LatentSpace
from sfumato.studies.second import second_folder, trained_diffusion
from sfumato.training.diffusion import ConditionalDenoiser
from sfumato.training.encode import cached_latents
from sfumato.training.log import read_lines
from sfumato.training.previews import with_networks
from sfumato.training.second_stage import build_model

RESULT_FILE = "result.json"
SAMPLES_FILE = "samples.png"
SCORE = "score"


def second_stage(
    context: LatentsContext,
    space: LatentSpace,
    seed: int,
    steps: int,
    first: LatentDiffusion,
    folder: Path,
    cache: Path,
) -> SecondResult:
    """Trains and scores one second stage in `folder`, if it is not finished. Raises Stopped after a signal."""
    done = folder / RESULT_FILE
    if done.exists():
        return load_second(done)
    config, workers = context.config, context.workers
    run = second_run(config, seed, steps, context.pace.second)
    first = first.to(workers.device)
    bar = context.progress(f"encoding {space.name}")
    latents = cached_latents(first, context.data.training, cache, precision=config.precision, progress=bar)
    model = build_model(run, first, latents).to(workers.device)
    assert model.second is not None

    at_end: list[SampleScore] = []

    def scored(networks: ConditionalDenoiser, step: int) -> dict[str, float | list[float]]:
        with autocast(workers.device, config.precision):
            found = context.scorer(with_networks(model, networks))
        if step == steps:
            at_end.append(found)
        return {SCORE: found.value}

    seconds = trained_diffusion(run, model, latents, folder, scored, workers).seconds
    if not at_end:  # the training had ended when the study was interrupted
        with autocast(workers.device, config.precision):
            at_end.append(context.scorer(load(second_folder(folder), workers.device)))
    found = at_end[-1]
    save_png(folder / SAMPLES_FILE, image_grid(found.images[:SHEET], columns=8))
    result = SecondResult(
        space=space.name,
        seed=seed,
        steps=steps,
        seconds=seconds,
        parameters=parameters([model.second.denoiser]),
        score=found.value,
        details=found.details,
        curve=_curve(second_folder(folder)),
    )
    result.save(folder / RESULT_FILE)
    return result


def _curve(run: Path) -> tuple[ScorePoint, ...]:
    """The scores in the run's log, each with the training seconds that are logged for the same step."""
    lines = read_lines(run / "log.jsonl")
    seconds = {line["step"]: line["seconds"] for line in lines if "seconds" in line}
    return tuple(
        ScorePoint(line["step"], seconds[line["step"]], line[SCORE])
        for line in lines
        if SCORE in line and line["step"] in seconds
    )
