"""What super-resolution is measured against: a network of the same size that is trained to guess the pixels.

    python -m benchmarks.regression --out FOLDER --minutes 10

The U-Net of a zoo configuration, without noise and without an autoencoder: the small image, enlarged by a bicubic
filter, is folded into the latent's grid, and the network adds what is missing; the loss is the mean squared error of
the pixels. It is trained on the data of the configuration for so many minutes, and kept in FOLDER.
"""

import argparse
import json
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from sfumato import rng
from sfumato.checkpoint import load_into, load_tensors, save_tensors, write_text
from sfumato.cli.run_configuration import with_data
from sfumato.conditioning.condition import Condition, ConditionSpec
from sfumato.config import apply_overrides, parse, read_source
from sfumato.data.conditions.config import LowResolutionConfig
from sfumato.data.conditions.degrade import degrade
from sfumato.data.image_dataset import ImageDataset
from sfumato.data.loader import sweep
from sfumato.data.split import Subset, split
from sfumato.data.table import open_dataset
from sfumato.denoiser.table import DenoiserConfig, build_denoiser
from sfumato.errors import UserError
from sfumato.images import to_uint8, to_unit
from sfumato.schema import Schema
from sfumato.training.conditions import data_config_for
from sfumato.training.data import groups_of
from sfumato.training.diffusion_run import DiffusionRun
from sfumato.training.optim import build_optimiser, clip_, gradients_norm, learning_rate, read, set_rate
from sfumato.training.state import TrainState
from sfumato.training.steps import check_progress, count_step
from sfumato.training.workers import use_all_cores

CONFIG, WEIGHTS = "regression.json", "regression.safetensors"
CELL = 4
"""Pixels a side that are folded into channels: the f of the models it is compared with."""
AT_ONCE = 64
LOWER_RATE = "give a lower train.optimiser.learning_rate"


class RegressionConfig(Schema):
    """`regression.json`: the network, and how much smaller its small images are. `about` is for people."""

    denoiser: DenoiserConfig
    factor: int
    cell: int = CELL
    about: dict[str, Any] = Field(default_factory=dict)


class Regression(nn.Module):
    """Small images (B, 3, h, w) in [-1, 1] -> large ones (B, 3, h · factor, w · factor), about [-1, 1]."""

    def __init__(self, config: RegressionConfig) -> None:
        super().__init__()
        self.config = config
        self.network = build_denoiser(config.denoiser, 3 * config.cell**2, ConditionSpec())

    def forward(self, small: Tensor) -> Tensor:
        large = F.interpolate(small, scale_factor=self.config.factor, mode="bicubic")
        folded = F.pixel_unshuffle(large, self.config.cell)
        missing = self.network(folded, small.new_zeros(len(small)), Condition())
        return large + F.pixel_shuffle(missing, self.config.cell)

    @torch.no_grad()
    def enlarge(self, small: Tensor) -> Tensor:
        """uint8 (N, 3, h, w) -> uint8 of the large size, on the CPU."""
        device = next(self.parameters()).device
        parts = [self(to_unit(part.to(device))) for part in small.split(AT_ONCE)]
        return to_uint8(torch.cat(parts)).cpu()


@dataclass(frozen=True)
class Pairs:
    """Small and large images, uint8 (N, 3, h, w) and (N, 3, H, W)."""

    small: Tensor
    large: Tensor


def load_regression(folder: Path, device: torch.device | str = "cpu") -> Regression:
    """Opens what this program wrote. Raises UserError where it is not there."""
    if not (folder / CONFIG).is_file():
        raise UserError(f"{str(folder)!r} holds no {CONFIG}: give a folder that benchmarks.regression wrote")
    config = parse(json.loads((folder / CONFIG).read_text(encoding="utf-8")), RegressionConfig, str(folder / CONFIG))
    network = Regression(config)
    load_into(network, load_tensors(folder / WEIGHTS)[0], str(folder / WEIGHTS))
    return network.eval().requires_grad_(False).to(device)


def pairs_of(run: DiffusionRun, most: int) -> Pairs:
    """Up to `most` images of the training data, each degraded once. Raises UserError where none can be read."""
    asked = run.conditions.low_resolution or LowResolutionConfig()
    dataset = open_dataset(data_config_for(run.data, run.conditions))
    if isinstance(dataset, ImageDataset):
        training, _ = split(dataset, run.held_out.amount, run.held_out.seed, groups_of(dataset, run.held_out.by))
    else:
        training = Subset(dataset, range(len(dataset)))
    rows = range(min(most, len(training)))
    read = sweep(training, AT_ONCE, rows, unreadable=lambda row, error: None)
    parts = [to_uint8(batch.images) for batch in read]
    if not parts:
        raise UserError("none of the images can be read: check the data folder")
    large = torch.cat(parts)
    small = [
        degrade(image.numpy(), asked.factor, asked.degradation, rng.numpy_generator(run.train.seed, "regression", i))
        for i, image in enumerate(large)
    ]
    return Pairs(torch.stack([torch.from_numpy(image) for image in small]), large)


def train(
    run: DiffusionRun, pairs: Pairs, minutes: float, device: torch.device, say: Callable[[str], None]
) -> Regression:
    """The trained network, in float32; the learning rate goes as in a run whose last step is where the time ends.

    A step whose gradients are not finite changes nothing and is counted. Raises UserError after too many in a row.
    """
    asked = run.conditions.low_resolution or LowResolutionConfig()
    with rng.seeded(run.train.seed, "weights", "regression", device=torch.device("cpu")):
        network = Regression(RegressionConfig(denoiser=run.denoiser, factor=asked.factor))
    network = network.to(device).train()
    small, large = pairs.small.to(device), pairs.large.to(device)
    recipe = run.train.optimiser
    optimiser = build_optimiser(recipe, network)
    order = rng.generator(run.train.seed, "regression", "order")
    state = TrainState({"network": network}, {"network": optimiser})
    t_start = t_reported = time.monotonic()
    passed, heard = 0.0, "no finite step"
    while passed < 1:
        rows = torch.randint(len(large), (run.train.batch,), generator=order).to(device)
        set_rate(optimiser, learning_rate(recipe, state.step, passed))
        loss = F.mse_loss(network(to_unit(small[rows])), to_unit(large[rows]))
        loss.backward()
        norm, error = read(gradients_norm(network.parameters()), loss)
        finite = math.isfinite(norm) and math.isfinite(error)
        if finite:
            clip_(network.parameters(), norm, recipe.clip_norm)
            optimiser.step()
            heard = f"{10 * math.log10(4 / max(error, 1e-9)):.2f} dB"
        optimiser.zero_grad(set_to_none=True)
        now = time.monotonic()
        passed = min(1.0, (now - t_start) / (60 * minutes))
        count_step(state, finite, run.train.batch, 0.0)
        check_progress(state, run.train.max_skipped, LOWER_RATE)
        if now - t_reported > 10 or passed == 1:
            t_reported = now
            lost = f", {state.skipped} of them skipped: their gradients were not finite" if state.skipped else ""
            progress = f"{heard}, {state.step / (now - t_start):.1f} steps/s"
            say(f"{(now - t_start) / 60:.1f} of {minutes:g} minutes, {state.step} steps{lost}, {progress}")
    about: dict[str, Any] = {
        "steps": state.step,
        "skipped": state.skipped,
        "images": state.images,
        "minutes": minutes,
        "evaluated": len(large),
    }
    about |= {"parameters": sum(p.numel() for p in network.parameters()), "degradation": asked.degradation}
    network.config = network.config.model_copy(update={"about": about})
    return network.eval().requires_grad_(False)


def save(network: Regression, folder: Path) -> None:
    """Configuration and weights."""
    folder.mkdir(parents=True, exist_ok=True)
    save_tensors(folder / WEIGHTS, network.state_dict())
    write_text(folder / CONFIG, network.config.model_dump_json(indent=1) + "\n")


def main(arguments: Sequence[str] | None = None) -> None:
    """Trains and saves."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.regression",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--minutes", type=float, required=True, help="of training, without preparing the images")
    parser.add_argument("--config", default="zoo:toy/super-res", help="a run's file or zoo:NAME: network and data")
    parser.add_argument("--data", type=Path, help="images of a folder instead of the toy world")
    parser.add_argument("--images", type=int, default=10_000, help="most that are prepared, in memory")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("overrides", nargs="*", metavar="KEY=VALUE", help="of the configuration")
    options = parser.parse_args(arguments)
    if options.minutes <= 0 or options.images < 1:
        parser.error("--minutes and --images take numbers above 0")
    raw = apply_overrides(read_source(options.config), options.overrides)
    run = parse(with_data(raw, options.data), DiffusionRun, options.config)
    t_start = time.monotonic()
    pairs = pairs_of(run, options.images)
    print(f"{len(pairs.large)} images prepared in {time.monotonic() - t_start:.1f} s")
    network = train(run, pairs, options.minutes, torch.device(options.device), print)
    save(network, options.out)
    print(f"{network.config.about['parameters']:,} parameters in {options.out}")


if __name__ == "__main__":
    use_all_cores()
    try:
        main()
    except UserError as error:
        raise SystemExit(f"regression: {error}") from None
