"""`sfumato distill-decoder`."""

import os
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from sfumato.cli.flags import command, flag
from sfumato.cli.forms import SAMPLES
from sfumato.cli.machine import AModel, Overwriting
from sfumato.cli.schema_flags import schema_flag
from sfumato.counts import how_many
from sfumato.pipeline.options import Range

if TYPE_CHECKING:
    import torch

    from sfumato.autoencoder.tiny_file import DistilledDecoder
    from sfumato.data.dataset import Dataset, Progress
    from sfumato.model import LatentDiffusion
    from sfumato.training.distillation import DecoderComparison, Distillation
    from sfumato.training.workers import Workers

MINUTES = 10.0
ON_SHEET = 16
HELD_OUT = 64
TIMED = 16
ROUNDS = 5
SHEET = "compare.png"
OWN_FILES = {SHEET, "log.jsonl"}
"""The files of the command in its own folder."""
SCHEMA = "training.distillation:Distillation"


@dataclass(frozen=True, kw_only=True)
class DistillFlags(Overwriting, AModel):
    """The options of `sfumato distill-decoder`; most are fields of a `Distillation`."""

    data: str | None = flag(
        None,
        "what to sample",
        "A folder of images, or toy [default: what the autoencoder was trained on].",
        path=True,
    )
    out: Path | None = flag(
        None, "output", "The folder for the log and a sheet of images [default: MODEL/tiny-decoder]."
    )
    minutes: float | None = flag(
        None, "machine", f"How long it may take in all [default: {MINUTES:g}].", Range(1e-3, 1e6)
    )
    steps: int | None = schema_flag(SCHEMA, "steps", "machine", None, "Train for this many steps instead of a time.")
    images: int = flag(
        1024,
        "what to sample",
        "Number of images that are encoded and decoded to train on.",
        Range(2, SAMPLES, whole=True),
    )
    channels: int | None = schema_flag(SCHEMA, "channels", "machine", names=("--channels",))
    perceptual: float = flag(
        0.0,
        "machine",
        "Weight of EfficientNet-Lite0's distance; 0 is pixels only.",
        Range(0.0, 1e6),
        metavar="W",
    )
    batch: int = schema_flag(SCHEMA, "batch", "machine", help="Crops per step.")
    seed: int = schema_flag(
        SCHEMA, "seed", "what to sample", help="Seed of the choice of images, the initial weights and the steps."
    )
    background: str = flag("white", "what to sample", "Colour behind transparent images.")
    precision: str = flag("auto", "machine", "auto (bfloat16 where fast), float32 or bfloat16.")


@command(DistillFlags)
def distill_decoder(flags: DistillFlags) -> None:
    """Train a tiny decoder of a model, for previews.

    It learns to imitate the model's decoder on your images. It is stored in the model folder beside that decoder, which
    stays unchanged. `sfumato sample --decoder tiny` and the previews while sampling use it.
    """
    train_tiny_decoder(flags)


def train_tiny_decoder(flags: DistillFlags) -> None:
    """The work of the command, for `sfumato distill --with-decoder` too."""
    from sfumato.autoencoder.tiny_file import FILE, DistilledDecoder
    from sfumato.cli.options import chosen_autocast, enough_memory, made_fast, out_folder
    from sfumato.cli.progress import bars
    from sfumato.model_folder import find_folder, load
    from sfumato.outputs import inside_model
    from sfumato.training.distillation import (
        build_tiny_decoder,
        compare_decoders,
        distil,
        gather_pairs,
        tiny_decoder_config,
    )
    from sfumato.training.workers import use_all_cores

    t_start = time.monotonic()
    limit = _limit(flags.minutes, flags.steps)
    config = _config(flags)
    use_all_cores()
    workers = _one_worker()
    computing = chosen_autocast(workers.device, flags.precision)
    folder = _writable(find_folder(flags.model))
    with inside_model(folder):
        loaded = load(folder, workers.device)
        description = tiny_decoder_config(config, loaded)
        place = out_folder(_log_folder(flags.model, folder, flags.out, flags.overwrite))
        # packing uses the model up: nothing of it is saved from here on
        with made_fast(loaded, computing), enough_memory(flags.batch):
            with bars() as (say, progress):
                training, aside = _opened(flags.data, flags.background, loaded, flags.seed, progress("scanning"))
                half = None if limit is None else 30 * limit
                pairs = gather_pairs(config, loaded, training, half, progress("decoding"))
                say(f"{how_many(len(pairs), 'image')} encoded and decoded to learn from")
            if limit is not None:
                left = limit - (time.monotonic() - t_start) / 60
                config = config.model_copy(update={"minutes": max(left, limit / 4)})
            network, state = distil(config, build_tiny_decoder(config, description, pairs), pairs, place, workers)
            outcome = compare_decoders(loaded, network, aside)
            about = _about(config, outcome, state.step, len(pairs))
            made = DistilledDecoder(description.model_copy(update={"about": about}), network)
            made.save(folder)
            speedup = _faster(loaded, made, computing)
    typer.echo(
        f"PSNR on {len(outcome.images[0])} held-out images: tiny against full decoder {outcome.tiny_to_full:.2f} dB; "
        f"against the image {outcome.tiny_to_image:.2f} dB, the full one {outcome.full_to_image:.2f} dB"
    )
    typer.echo(f"{speedup}; trained for {how_many(state.step, 'step')} on {how_many(len(pairs), 'image')}")
    typer.echo(f"tiny decoder: {folder / FILE}; sheet of image, full, tiny: {_sheet(place, outcome)}")
    if state.stopped_by:
        typer.echo(f"stopped after step {state.step}; the same command trains it again from the beginning", err=True)
        raise typer.Exit(128 + state.stopped_by)


def _limit(minutes: float | None, steps: int | None) -> float | None:
    """Minutes in all; None if steps set the length. Raises UserError for both, or for none."""
    from sfumato.errors import UserError

    if minutes is not None and steps is not None:
        raise UserError("--minutes and --steps both set the length of the training: give one of them")
    return None if steps is not None else MINUTES if minutes is None else minutes


def _config(flags: DistillFlags) -> "Distillation":
    """The options as the loop has them. Raises UserError."""
    from sfumato.config import parse
    from sfumato.training.distillation import Distillation

    given: dict[str, Any] = {
        name: getattr(flags, name) for name in ("images", "batch", "channels", "seed", "precision")
    }
    if flags.steps is not None:
        given["steps"] = flags.steps
    if flags.perceptual > 0:
        given["perceptual"] = {"kind": "efficientnet-lite0", "weight": flags.perceptual}
    return parse(given, Distillation, "distill-decoder")


def _one_worker() -> "Workers":
    """The one process there may be. Raises UserError for several."""
    from sfumato.errors import UserError
    from sfumato.training.workers import Workers

    workers = Workers()
    if workers.world > 1:
        raise UserError("distill-decoder runs in one process: start it without accelerate launch")
    return workers


def _writable(folder: Path) -> Path:
    """The model folder. Raises UserError where nothing may be written into it, before any training."""
    from sfumato.errors import UserError
    from sfumato.shipped import WEIGHTS

    if folder.is_relative_to(WEIGHTS):
        raise UserError("a model of the package stays as it is: distil a decoder for a model of your own")
    if not os.access(folder, os.W_OK):
        raise UserError(f"{str(folder)!r} is where the tiny decoder goes, but may not be written to: copy the model")
    return folder


def _log_folder(model: Path, folder: Path, out: Path | None, overwrite: bool) -> Path:
    """Where log and sheet go. Raises UserError for a folder in use, but for those of an earlier distillation."""
    from sfumato.outputs import out_is_free

    place = model / "tiny-decoder" if out is None else out
    held = {entry.name for entry in place.iterdir()} if place.is_dir() else set()
    return out_is_free(place, () if out is None else (model, folder), overwrite or held <= OWN_FILES)


def _opened(
    data: str | None, background: str, model: "LatentDiffusion", seed: int, scanning: "Progress"
) -> "tuple[Dataset, Dataset]":
    """The images to train on, and those held out. Raises UserError where there are too few."""
    from sfumato.cli.real_images import TOY, opened_data
    from sfumato.data.split import split
    from sfumato.errors import UserError

    if data is None:
        known = model.config.about.get("autoencoder", {}).get("data", {})
        data = TOY if known.get("kind") == TOY else known.get("path")
        if data is None or (data != TOY and not Path(data).is_dir()):
            gone = "" if data is None else f", and {data!r}, which the autoencoder was trained on, is not there"
            raise UserError(f"--data is missing{gone}: give a folder of images of that kind, or toy")
    dataset = opened_data(data, model.config.image_size, False, background, model, scanning)
    if len(dataset) < 2:
        raise UserError(f"--data {data!r} holds one image: give at least two, one to train on and one to evaluate on")
    return split(dataset, min(HELD_OUT, max(1, len(dataset) // 10)), seed)


def _about(config: "Distillation", outcome: "DecoderComparison", steps: int, images: int) -> dict[str, Any]:
    """The file's record of its training and its quality."""
    from sfumato import __version__

    return {
        "sfumato": __version__,
        "steps": steps,
        "images": images,
        "pixel": config.pixel,
        "perceptual": config.perceptual.kind,
        "psnr against the full decoder": round(outcome.tiny_to_full, 2),
        "psnr against the image": round(outcome.tiny_to_image, 2),
        "psnr of the full decoder": round(outcome.full_to_image, 2),
    }


def _sheet(folder: Path, outcome: "DecoderComparison") -> Path:
    """Writes a row of image, full and tiny for each of some held-out images."""
    from sfumato.images import image_grid, save_png, thumbnails

    path = folder / SHEET
    rows = thumbnails([image for one in zip(*outcome.images, strict=True) for image in one][: 3 * ON_SHEET])
    save_png(path, image_grid(rows, 12), scale=max(1, 128 // rows.shape[-1]))
    return path


def _faster(model: "LatentDiffusion", made: "DistilledDecoder", computing: "torch.autocast") -> str:
    """How the two decoders' operations and times compare; the model's own is packed already."""
    from copy import deepcopy
    from dataclasses import replace
    from functools import partial

    import torch

    from sfumato import flops
    from sfumato.engine.inference import for_inference
    from sfumato.estimate.speed import seconds
    from sfumato.pipeline.request import DecoderName

    size = model.config.image_size
    fewer = flops.decode(model.config.autoencoder, size) / flops.decode_tiny(made.config.decoder, size)
    network = for_inference(deepcopy(made.network), torch.bfloat16 if computing._enabled else torch.float32)
    both = replace(model, tiny=replace(made, network=network))
    latents = torch.zeros(TIMED, *model.latent_shape, device=model.device)
    times: dict[DecoderName, list[float]] = {"full": [], "tiny": []}
    for _ in range(ROUNDS):
        for name, taken in times.items():
            taken.append(seconds(partial(both.decode, latents, name), model.device))
    full, tiny = (min(taken) / TIMED for taken in times.values())
    return (
        f"{made.config.decoder.channels} channels, {fewer:.0f} times fewer operations; {1000 * tiny:.2f} ms an image "
        f"on this machine, {full / tiny:.1f} times faster than the full decoder's {1000 * full:.1f} ms"
    )
