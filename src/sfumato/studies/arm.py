"""One arm of a study: stage 1, latents, stage 2, and the measurements; every part goes on where it was stopped."""

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
from sfumato.studies.bench import SHEET, Bench, finished
from sfumato.studies.evaluator import rows
from sfumato.studies.pace import Pace, Steps
from sfumato.studies.plan import Arm, first_run
from sfumato.studies.result import ArmResult, Ceiling, Moment, load_result
from sfumato.training.autoencoder import AutoencoderRun, train_autoencoder
from sfumato.training.data import height_width
from sfumato.training.encode import cached_latents
from sfumato.training.export import save_autoencoder
from sfumato.training.log import read_lines
from sfumato.training.previews import Reconstructions
from sfumato.training.run import RunFolder


def run_arm(bench: Bench, arm: Arm, pace: Pace, bought: Steps, folder: Path) -> ArmResult:
    """Trains and measures what is not there yet. Raises Stopped after a signal."""
    done = folder / "result.json"
    if done.exists():
        return load_result(done)
    config, images_read = bench.config, len(bench.data.training)
    run = first_run(config, arm, max(1, bought.first), pace.first_seconds)
    first, first_seconds = _trained_first(bench, run, folder / "autoencoder")
    first = first.to(bench.workers.device)
    latents = cached_latents(
        first, bench.data.training, folder / "cache", precision=config.precision, progress=bench.progress("encoding")
    )
    train = second.codes if arm.way.codes else second.diffusion
    trained = train(bench, arm, bought.second, pace, first, latents, folder)
    statistics = latents.statistics()
    result = ArmResult(
        factor=arm.way.factor,
        seed=arm.seed,
        latent=first.latent_shape,
        autoencoder_parameters=parameters([first.autoencoder]),
        denoiser_parameters=trained.parameters,
        first_steps=0 if run is None else run.train.steps,
        second_steps=trained.steps,
        first_seconds=first_seconds,
        second_seconds=trained.seconds,
        encoding_seconds=0.0 if run is None else pace.encoding_seconds * images_read,
        operations=bought.first * pace.first_operations + bought.second * pace.second_operations,
        latent_mean=tuple(statistics.mean.tolist()),
        latent_std=tuple(statistics.std.tolist()),
        curve=_curve(second.second_folder(folder), first_seconds),
        drawings=trained.drawings,
        ceiling=None if run is None else _ceiling(bench, first, folder),
        codes=arm.way.codes,
    )
    result.save(done)
    shutil.rmtree(folder / "cache", ignore_errors=True)  # large, and of no use to anyone else
    return result


def _trained_first(bench: Bench, run: AutoencoderRun | None, path: Path) -> tuple[LatentDiffusion, float]:
    """Stage 1 and the seconds that it trained; pixel space has none."""
    size = height_width(bench.config.data)
    if run is None:
        return pixel_space(size), 0.0
    home = RunFolder(path)
    data = bench.data
    preview = Reconstructions.of(data.measured, 64, home.previews, run.train.precision, data.about_measured)
    with home.session(bench.workers):
        home.claim(run)
        state = train_autoencoder(
            run,
            bench.data.training,
            home,
            preview,
            lambda network, state: save_autoencoder(network, run, bench.data, home, state),
            bench.workers,
        )
    seconds = finished(state)
    return load(path), seconds


def _curve(run: Path, before: float) -> tuple[Moment, ...]:
    """Judgements from the run's log, at the seconds of training that the same step's line tells."""
    lines = read_lines(run / "log.jsonl")
    seconds = {line["step"]: line["seconds"] for line in lines if "seconds" in line}
    return tuple(
        Moment(before + seconds[line["step"]], line["step"], line["kernel_distance"])
        for line in lines
        if "kernel_distance" in line and line["step"] in seconds
    )


@torch.no_grad()
def _ceiling(bench: Bench, first: LatentDiffusion, folder: Path) -> Ceiling:
    """Of held-out images through stage 1 and back."""
    source = bench.data.measured
    chosen = rows(source, bench.config.samples)
    images = torch.cat([b.images for b in sweep(source, 32, chosen, unreadable=lambda row, error: None)])
    with autocast(bench.workers.device, bench.config.precision):
        output = first.reconstruct(images, batch=32).float().clamp(-1, 1).cpu()
    sheet = image_grid(interleave(images[: SHEET // 2], output[: SHEET // 2]), columns=8)
    save_png(folder / "reconstructions.png", sheet)
    return Ceiling(
        bench.judge(output, frechet=True), psnr(output, images).mean().item(), ssim(output, images).mean().item()
    )
