"""One arm of a study: stage 1, latents, stage 2 and the measurements; every part resumes where it was stopped."""

import shutil
from pathlib import Path

import torch

from sfumato.data.loader import sweep
from sfumato.engine.precision import autocast
from sfumato.estimate.memory import parameters
from sfumato.evaluation.image_quality import psnr, ssim
from sfumato.images import image_grid, interleave, save_png
from sfumato.model import LatentDiffusion, pixel_space
from sfumato.model_folder import load
from sfumato.studies import second
from sfumato.studies.context import SHEET, StudyContext
from sfumato.studies.evaluator import rows
from sfumato.studies.first import trained_first
from sfumato.studies.plan import Arm, first_run
from sfumato.studies.result import ArmResult, Ceiling, CurvePoint, load_result
from sfumato.studies.step_cost import StepCost, Steps
from sfumato.training.autoencoder_run import AutoencoderRun
from sfumato.training.data import height_width
from sfumato.training.encode import cached_latents
from sfumato.training.log import read_lines


def run_arm(context: StudyContext, arm: Arm, cost: StepCost, counts: Steps, folder: Path) -> ArmResult:
    """Trains and measures whatever is not finished yet. Raises Stopped after a signal."""
    done = folder / "result.json"
    if done.exists():
        return load_result(done)
    config, images_read = context.config, len(context.data.training)
    run = first_run(config, arm, max(1, counts.first), cost.first_seconds)
    first, first_seconds = _trained_first(context, run, folder / "autoencoder")
    first = first.to(context.workers.device)
    latents = cached_latents(
        first,
        context.data.training,
        folder / "cache",
        precision=config.precision,
        progress=context.progress("encoding"),
    )
    train = second.codes if arm.method.codes else second.diffusion
    trained = train(context, arm, counts.second, cost, first, latents, folder)
    statistics = latents.statistics()
    result = ArmResult(
        factor=arm.method.factor,
        seed=arm.seed,
        latent=first.latent_shape,
        autoencoder_parameters=parameters([first.autoencoder]),
        denoiser_parameters=trained.parameters,
        first_steps=0 if run is None else run.train.steps,
        second_steps=trained.steps,
        first_seconds=first_seconds,
        second_seconds=trained.seconds,
        encoding_seconds=0.0 if run is None else cost.encoding_seconds * images_read,
        operations=counts.first * cost.first_operations + counts.second * cost.second_operations,
        latent_mean=tuple(statistics.mean.tolist()),
        latent_std=tuple(statistics.std.tolist()),
        curve=_curve(second.second_folder(folder), first_seconds),
        sampling=trained.sampling,
        ceiling=None if run is None else _ceiling(context, first, folder),
        codes=arm.method.codes,
    )
    result.save(done)
    shutil.rmtree(folder / "cache", ignore_errors=True)  # large, and nothing else reads it
    return result


def _trained_first(context: StudyContext, run: AutoencoderRun | None, path: Path) -> tuple[LatentDiffusion, float]:
    """The trained stage 1 and its training time in seconds: 0 in pixel space, which has no stage 1."""
    size = height_width(context.config.data)
    if run is None:
        return pixel_space(size), 0.0
    seconds = trained_first(run, context.data, path, context.workers).seconds
    return load(path), seconds


def _curve(run: Path, before: float) -> tuple[CurvePoint, ...]:
    """The scores in the run's log, each with the training seconds that are logged for the same step."""
    lines = read_lines(run / "log.jsonl")
    seconds = {line["step"]: line["seconds"] for line in lines if "seconds" in line}
    return tuple(
        CurvePoint(before + seconds[line["step"]], line["step"], line["kernel_distance"])
        for line in lines
        if "kernel_distance" in line and line["step"] in seconds
    )


@torch.no_grad()
def _ceiling(context: StudyContext, first: LatentDiffusion, folder: Path) -> Ceiling:
    """Scores of the reconstructions of held-out images."""
    source = context.data.measured
    chosen = rows(source, context.config.samples)
    images = torch.cat([b.images for b in sweep(source, 32, chosen, unreadable=lambda row, error: None)])
    with autocast(context.workers.device, context.config.precision):
        output = first.reconstruct(images, batch=32).float().clamp(-1, 1).cpu()
    sheet = image_grid(interleave(images[: SHEET // 2], output[: SHEET // 2]), columns=8)
    save_png(folder / "reconstructions.png", sheet)
    return Ceiling(
        context.evaluator(output, frechet=True), psnr(output, images).mean().item(), ssim(output, images).mean().item()
    )
