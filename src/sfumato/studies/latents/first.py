"""The first stages of a study: trained in the same way, to equal PSNR, and measured."""

import json
from dataclasses import dataclass
from math import ceil
from pathlib import Path

import torch
from torch import Tensor

from sfumato.cards.first_stage import MeasuredAutoencoder, measure_autoencoder
from sfumato.checkpoint import write_text
from sfumato.data.loader import sweep
from sfumato.images import image_grid, save_png
from sfumato.model import LatentDiffusion
from sfumato.model_folder import load
from sfumato.plain_json import to_json
from sfumato.studies.first import trained_first
from sfumato.studies.latents.context import LatentsContext
from sfumato.studies.latents.plan import TOLERANCE, decoder_run, first_run
from sfumato.studies.latents.result import FirstResult, load_first
from sfumato.studies.latents.spaces import LatentSpace

ROUNDS_FILE = "rounds.json"
RESULT_FILE = "result.json"
RECONSTRUCTIONS_FILE = "reconstructions.png"
LATENTS_FILE = "latents.png"
PAIRS = 16
LATENTS_SHOWN = 8
ROUND = 0.25
"""Share of the planned steps by which a first stage is trained on."""


@dataclass(frozen=True)
class Round:
    """A first stage after `steps` steps and `seconds` of training: its PSNR on held-out images."""

    steps: int
    seconds: float
    psnr: float


def first_stages(context: LatentsContext, spaces: list[LatentSpace], steps: int, home: Path) -> dict[str, FirstResult]:
    """Trains and measures the first stages in `home` that are not finished. Raises Stopped after a signal.

    All train for the same number of steps; then those whose PSNR is more than TOLERANCE below the best train on,
    for at most `longest` times the steps. The best PSNR is that of the spaces which were trained first: it is kept.
    """
    started = {space.name: _rounds(context, space, steps, home / space.name) for space in spaces}
    target_file = home / "best.json"
    if not target_file.exists():
        best = max(rounds[0].psnr for rounds in started.values())
        write_text(target_file, to_json({"psnr": best}) + "\n")
    best = float(json.loads(target_file.read_text(encoding="utf-8"))["psnr"])
    return {space.name: _evened_out(context, space, steps, best, home / space.name) for space in spaces}


def model_of(space: LatentSpace, home: Path) -> LatentDiffusion:
    """The finished first stage of a space."""
    return load(_last_folder(space, home / space.name))


def _last_folder(space: LatentSpace, folder: Path) -> Path:
    return folder / ("decoder" if space.alone else "autoencoder")


def _rounds(context: LatentsContext, space: LatentSpace, steps: int, folder: Path) -> list[Round]:
    """The finished rounds of a first stage, trained for the planned steps at least."""
    file = folder / ROUNDS_FILE
    if file.exists():
        return [Round(**each) for each in json.loads(file.read_text(encoding="utf-8"))]
    context.say(f"first stage {space.name}: {steps} steps")
    return [_train(context, space, steps, steps, folder, [])]


def _evened_out(context: LatentsContext, space: LatentSpace, steps: int, best: float, folder: Path) -> FirstResult:
    """Trains a first stage on while its PSNR is too low, and measures it."""
    done = folder / RESULT_FILE
    if done.exists():
        return load_first(done)
    rounds, longest = _rounds(context, space, steps, folder), int(context.config.longest * steps)
    while rounds[-1].psnr < best - TOLERANCE and rounds[-1].steps < longest:
        more = min(longest, rounds[-1].steps + ceil(ROUND * steps))
        context.say(f"first stage {space.name}: PSNR {rounds[-1].psnr:.2f} dB of {best:.2f} dB, on to {more} steps")
        rounds.append(_train(context, space, more, steps, folder, rounds))
    return _measured(context, space, rounds[-1], best, folder)


def _train(
    context: LatentsContext, space: LatentSpace, steps: int, planned: int, folder: Path, before: list[Round]
) -> Round:
    """Trains a first stage up to `steps`, of which its decoder alone has the last, and notes the round."""
    config, pace = context.config, context.pace.first
    whole = max(1, round((1 - space.alone) * planned)) if space.alone else steps
    start = folder / "autoencoder"
    data, workers = context.data, context.workers
    seconds = trained_first(first_run(config, space, whole, planned, pace), data, start, workers).seconds
    if space.alone:
        decoder = decoder_run(config, space, start, max(1, steps - whole), planned, pace)
        seconds += trained_first(decoder, data, folder / "decoder", workers).seconds
    found = Round(steps, seconds, _psnr(context, load(_last_folder(space, folder))))
    write_text(folder / ROUNDS_FILE, to_json([vars(each) for each in [*before, found]]) + "\n")
    return found


def _psnr(context: LatentsContext, model: LatentDiffusion) -> float:
    return _measure(context, model).metrics["PSNR"].value


def _measure(context: LatentsContext, model: LatentDiffusion) -> MeasuredAutoencoder:
    count = min(len(context.data.measured), context.config.measured)
    return measure_autoencoder(model.to(context.workers.device), context.data.measured, count)


def _measured(context: LatentsContext, space: LatentSpace, last: Round, best: float, folder: Path) -> FirstResult:
    """Measures the finished first stage and saves its images."""
    model = load(_last_folder(space, folder))
    found = _measure(context, model)
    shown = found.pairs[: 2 * PAIRS]
    save_png(folder / RECONSTRUCTIONS_FILE, image_grid(shown, columns=8))
    save_png(folder / LATENTS_FILE, latent_sheet(model, _images(context)))
    result = FirstResult(
        space=space.name,
        steps=last.steps,
        seconds=last.seconds,
        psnr=last.psnr,
        best=best,
        metrics={name: metric.value for name, metric in found.metrics.items()},
        better={name: metric.better for name, metric in found.metrics.items() if metric.better is not None},
    )
    result.save(folder / RESULT_FILE)
    return result


def _images(context: LatentsContext) -> Tensor:
    """The first held-out images, (N, 3, H, W) in [-1, 1]."""
    data = context.data.measured
    rows = range(min(len(data), LATENTS_SHOWN))
    return torch.cat([batch.images for batch in sweep(data, LATENTS_SHOWN, rows, unreadable=lambda row, error: None)])


def latent_sheet(model: LatentDiffusion, images: Tensor) -> Tensor:
    """Each image (3, H, W) in a row with the channels of its normalised latent, enlarged to its size.

    Grey is a channel's mean; black and white are three standard deviations from it, both over these images. uint8
    (3, H', W').
    """
    raw = model.encode(images.to(model.device)).float().cpu()
    std, mean = torch.std_mean(raw, dim=(0, 2, 3), keepdim=True)
    grey = ((raw - mean) / std.clamp_min(1e-12) / 3).clamp(-1, 1)
    f = model.autoencoder.factor
    large = grey.repeat_interleave(f, 2).repeat_interleave(f, 3)  # (N, C, H, W)
    maps = large[:, :, None].expand(-1, -1, 3, -1, -1)
    rows = torch.cat([images[:, None], maps], dim=1)  # (N, 1 + C, 3, H, W)
    return image_grid(rows.flatten(0, 1), columns=rows.shape[1])
