"""One arm of a study: stage 1, latents, stage 2, and the measurements; every part goes on where it was stopped."""

import shutil
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch

from sfumato import pictures
from sfumato.cost.memory import parameters
from sfumato.data.dataset import Progress
from sfumato.data.latents import LatentDataset
from sfumato.data.loader import sweep
from sfumato.evaluation.image_quality import psnr, ssim
from sfumato.model import LatentDiffusion, load, pixel_space
from sfumato.study.judge import Judge, rows
from sfumato.study.pace import Pace, Steps
from sfumato.study.plan import Arm, StudyConfig, first_run, latent_of, second_run
from sfumato.study.result import ArmResult, Ceiling, Drawing, Moment, load_result
from sfumato.training.autoencoder import AutoencoderRun, train_autoencoder
from sfumato.training.data import RunData, height_width
from sfumato.training.diffusion import DiffusionRun, Steered, train_diffusion
from sfumato.training.encode import cached_latents
from sfumato.training.export import save_autoencoder, save_diffusion
from sfumato.training.log import read_lines
from sfumato.training.previews import Reconstructions, with_networks
from sfumato.training.run import RunFolder
from sfumato.training.second_stage import begin, steered
from sfumato.training.workers import Workers, autocast

SHEET = 32
"""Pictures that are kept to be looked at."""


class Stopped(Exception):  # noqa: N818 - what was asked for, no mistake
    """A signal asked the training to stop; it has been saved."""


@dataclass(frozen=True)
class Bench:
    """What all arms of a study share."""

    config: StudyConfig
    data: RunData
    judge: Judge
    workers: Workers
    progress: Callable[[str], Progress]


def run_arm(bench: Bench, arm: Arm, pace: Pace, bought: Steps, folder: Path) -> ArmResult:
    """Trains and measures what is not there yet. Raises Stopped after a signal."""
    done = folder / "result.json"
    if done.exists():
        return load_result(done)
    config, pictures_read = bench.config, len(bench.data.training)
    run = first_run(config, arm, max(1, bought.first), pace.first_seconds)
    first, first_seconds = _trained_first(bench, run, folder / "autoencoder")
    first = first.to(bench.workers.device)
    latents = cached_latents(
        first, bench.data.training, folder / "cache", precision=config.precision, progress=bench.progress("encoding")
    )
    second = second_run(config, arm, latent_of(config, arm.factor), bought.second, pace.second_seconds)
    model, second_seconds = _trained_second(bench, second, first, latents, folder / "diffusion")
    statistics = latents.statistics()
    result = ArmResult(
        factor=arm.factor,
        seed=arm.seed,
        latent=model.latent_shape,
        autoencoder_parameters=parameters([model.autoencoder]),
        denoiser_parameters=parameters([model.parts()["denoiser"]]),
        first_steps=0 if run is None else run.train.steps,
        second_steps=second.train.steps,
        first_seconds=first_seconds,
        second_seconds=second_seconds,
        encoding_seconds=0.0 if run is None else pace.encoding_seconds * pictures_read,
        operations=bought.first * pace.first_operations + bought.second * pace.second_operations,
        latent_mean=tuple(statistics.mean.tolist()),
        latent_std=tuple(statistics.std.tolist()),
        curve=_curve(folder / "diffusion", first_seconds),
        ceiling=None if run is None else _ceiling(bench, first, folder),
        drawings=tuple(_drawings(bench, model, folder)),
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
    home.claim(run)
    preview = Reconstructions.of(bench.data.held_out or bench.data.training, 64, home.previews, run.train.precision)
    state = train_autoencoder(
        run,
        bench.data.training,
        home,
        preview,
        lambda network, state: save_autoencoder(network, run, bench.data, home, state),
        bench.workers,
    )
    if state.step < run.train.steps:
        raise Stopped
    return load(path), state.seconds


def _trained_second(
    bench: Bench, run: DiffusionRun, first: LatentDiffusion, latents: LatentDataset, path: Path
) -> tuple[LatentDiffusion, float]:
    """The model with stage 2, judged on the way, and the seconds that stage 2 trained."""
    config, workers = bench.config, bench.workers
    model = begin(run, first, latents).to(workers.device)
    assert model.second is not None
    home = RunFolder(path)
    home.claim(run)

    def judged(networks: Steered, step: int) -> Mapping[str, float | list[float]]:
        with autocast(workers.device, config.precision):
            images = with_networks(model, networks).sample_tensor(n=config.samples, batch=64)
        return {"kernel_distance": bench.judge(images).kernel}

    state = train_diffusion(
        run,
        steered(model),
        model.second.schedule,
        model.autoencoder,
        model.scaling,
        latents,
        home,
        judged,
        lambda networks, state: save_diffusion(model, networks, run, home, state),
        workers,
    )
    if state.step < run.train.steps:
        raise Stopped
    return load(path, workers.device), state.seconds


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
    """Of held-out pictures through stage 1 and back."""
    source = bench.data.held_out or bench.data.training
    chosen = rows(source, bench.config.samples)
    images = torch.cat([b.images for b in sweep(source, 32, chosen, unreadable=lambda row, error: None)])
    with autocast(bench.workers.device, bench.config.precision):
        output = first.reconstruct(images, batch=32).float().clamp(-1, 1).cpu()
    sheet = pictures.grid(pictures.beside(images[: SHEET // 2], output[: SHEET // 2]), columns=8)
    pictures.save_png(folder / "reconstructions.png", sheet)
    return Ceiling(
        bench.judge(output, frechet=True), psnr(output, images).mean().item(), ssim(output, images).mean().item()
    )


def _drawings(bench: Bench, model: LatentDiffusion, folder: Path) -> list[Drawing]:
    """At every number of sampling steps, as `sfumato sample` draws: packed on the CPU."""
    config = bench.config
    if model.device.type == "cpu":
        model.for_inference(torch.bfloat16 if autocast(model.device, config.precision)._enabled else torch.float32)
    precision = config.precision if model.device.type != "cpu" else "float32"
    found = []
    with autocast(model.device, precision):
        for steps in config.sampling_steps:
            model.sample_tensor(n=1, steps=1)  # whatever is compiled on first use
            t_start = time.perf_counter()
            images = model.sample_tensor(n=config.samples, steps=steps, batch=64).cpu()
            elapsed = time.perf_counter() - t_start
            found.append(Drawing(steps, config.samples / elapsed, bench.judge(images, frechet=True)))
            pictures.save_png(folder / f"samples-{steps}.png", pictures.grid(images[:SHEET], columns=8))
    return found
