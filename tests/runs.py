"""Tiny runs of both stages on synthetic images, on which the contracts of training are tested."""

import os
import signal
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from sfumato import checkpoint
from sfumato.autoencoder.scaling import Scaling
from sfumato.config import apply_overrides, parse
from sfumato.data.dataset import Example
from sfumato.data.latents import LatentDataset
from sfumato.data.loader import Loader
from sfumato.model import LatentDiffusion, ModelConfig
from sfumato.training.autoencoder import build_stage1, train_autoencoder
from sfumato.training.autoencoder_run import AutoencoderRun
from sfumato.training.diffusion import train_diffusion
from sfumato.training.diffusion_run import DiffusionRun
from sfumato.training.encode import cached_latents
from sfumato.training.joint import train_joint
from sfumato.training.joint_model import joint_model, joint_networks
from sfumato.training.joint_run import JointRun
from sfumato.training.log import read_lines
from sfumato.training.run import RunFolder
from sfumato.training.second_stage import build_model, conditional_denoiser
from sfumato.training.state import TrainState
from sfumato.training.state_files import load_state
from sfumato.training.workers import Workers

SIZE = 16
WORDS = ("red", "blue", "round", "flat")
FIRST_STAGE: dict[str, Any] = {
    "model": {"channels": 16, "channel_multipliers": [1, 2], "blocks_per_level": 1, "latent_channels": 3},
    "data": {"kind": "folder", "path": "images", "size": SIZE},
    "train": {
        "steps": 6,
        "batch": 2,
        "precision": "float32",
        "optimiser": {"learning_rate": 1e-3, "warmup_steps": 2},
        "discriminator": {"learning_rate": 1e-3},
        "log_every": 1,
        "preview_every": 1,
        "save_every": 2,
        "workers": 0,
        "track": "none",
    },
}
SECOND_STAGE: dict[str, Any] = {
    "denoiser": {"channels": 32, "channel_multipliers": [1, 2], "blocks_per_level": 1, "attention_factors": [2]},
    "conditioner": {"kind": "text", "dim": 16, "depth": 1, "heads": 2, "head_dim": 8, "max_tokens": 8},
    "schedule": {"kind": "scaled-linear"},
    "data": {"kind": "folder", "path": "images", "size": SIZE},
    "train": {**FIRST_STAGE["train"], "batch": 4},
}
del SECOND_STAGE["train"]["discriminator"]
JOINT: dict[str, Any] = {
    "model": FIRST_STAGE["model"],
    "denoiser": SECOND_STAGE["denoiser"],
    "conditioner": SECOND_STAGE["conditioner"],
    "schedule": {"kind": "flow"},
    "objective": {"prediction": "flow", "latents": "mean", "times": {"kind": "logit-normal"}},
    "data": FIRST_STAGE["data"],
    "train": {**SECOND_STAGE["train"], "batch": 2, "draws": 3, "denoiser": SECOND_STAGE["train"]["optimiser"]},
}
TIMES = {"seconds", "data_wait_seconds"}
"""Times differ between two runs that are otherwise the same."""


def first_run(*overrides: str) -> AutoencoderRun:
    """The configuration of a tiny stage 1."""
    return parse(apply_overrides(FIRST_STAGE, overrides), AutoencoderRun, "first")


def second_run(*overrides: str) -> DiffusionRun:
    """The configuration of a tiny stage 2."""
    return parse(apply_overrides(SECOND_STAGE, overrides), DiffusionRun, "second")


def joint_run(*overrides: str) -> JointRun:
    """The configuration of a tiny training of both stages at once."""
    return parse(apply_overrides(JOINT, overrides, JointRun), JointRun, "joint")


@dataclass(frozen=True)
class Images:
    """Smooth random colours with a caption and a class; a mirrored variant."""

    count: int = 11
    size: int = SIZE
    fields: tuple[str, ...] = ("text", "label")
    classes: tuple[str, ...] | None = WORDS

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> Example:
        coarse = torch.rand(1, 3, 4, 4, generator=torch.Generator().manual_seed(index))
        pixels = F.interpolate(coarse, size=(self.size, self.size), mode="bilinear")[0] * 255
        words = f"{WORDS[index % 4]} {WORDS[index // 2 % 4]}"
        return Example(pixels.to(torch.uint8), {"text": words, "label": index % 4})

    def variant(self, index: int, seed: int) -> Example:
        example = self[index]
        return Example(example.image.flip(-1), example.fields) if seed % 2 else example

    def fingerprint(self) -> str:
        return f"images-{self.count}-{self.size}"

    def captions(self) -> list[str] | None:
        return [self[i].fields["text"] for i in range(self.count)]


@dataclass
class Hooks:
    """A test's intervention in a run: called after each step with its number, as the preview is."""

    after: Mapping[int, Callable[[], None]] = field(default_factory=dict)
    exported: list[int] = field(default_factory=list)

    def preview(self, network: torch.nn.Module, step: int) -> dict[str, float | list[float]]:
        if step in self.after:
            self.after[step]()
        return {"preview": float(sum(p.double().sum() for p in network.parameters()))}

    def export(self, network: torch.nn.Module, state: TrainState) -> None:
        self.exported.append(state.step)


def interrupt() -> None:
    """The effect of Ctrl-C: the loop finishes the next step, saves and stops."""
    os.kill(os.getpid(), signal.SIGINT)


class Crash(Exception):  # noqa: N818
    """Stands for the end of the process: nothing in the loop catches it."""


def crash() -> None:
    raise Crash


def train_first(path: Path, config: AutoencoderRun, hooks: Hooks | None = None) -> TrainState:
    """Runs stage 1 in the folder."""
    hooks = hooks or Hooks()
    torch.seed()  # torch's own generator stands anywhere, as in a new process: nothing may depend on it
    folder = RunFolder(path)
    folder.claim(config)
    return train_autoencoder(config, Images(), folder, hooks.preview, hooks.export)


def first_model(*overrides: str) -> LatentDiffusion:
    """An untrained autoencoder as the second stage takes it."""
    config = first_run(*overrides)
    autoencoder = build_stage1(config, Workers()).autoencoder.cpu().eval().requires_grad_(False)
    described = ModelConfig(autoencoder=config.model, image_size=(SIZE, SIZE), classes=WORDS)
    return LatentDiffusion(described, autoencoder, Scaling.from_factor(autoencoder.latent_channels, 1.0))


def latents_of(model: LatentDiffusion, cache: Path) -> LatentDataset:
    """The images' latents with their mirror images."""
    return cached_latents(model, Images(), cache, mirrored=True, precision="float32")


def train_second(path: Path, config: DiffusionRun, cache: Path, hooks: Hooks | None = None) -> TrainState:
    """Runs stage 2 in the folder on the untrained autoencoder."""
    hooks = hooks or Hooks()
    torch.seed()
    first = first_model()
    latents = latents_of(first, cache)
    workers = Workers()
    blank = workers.splits(config.train.shard) and not workers.leads
    model = build_model(config, first, latents, blank=blank)
    assert model.second is not None
    folder = RunFolder(path)
    folder.claim(config)
    return train_diffusion(
        config,
        conditional_denoiser(model),
        model.second.schedule,
        model.autoencoder,
        model.scaling,
        latents,
        folder,
        hooks.preview,
        hooks.export,
        workers,
    )


def train_both(path: Path, config: JointRun, hooks: Hooks | None = None) -> TrainState:
    """Runs both stages at once in the folder."""
    hooks = hooks or Hooks()
    torch.seed()
    model = joint_model(config, Images())
    assert model.second is not None
    folder = RunFolder(path)
    folder.claim(config)
    return train_joint(
        config, joint_networks(model), model.second.schedule, Images(), folder, hooks.preview, hooks.export
    )


def saved(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Tensors and counters of a run's newest state, without the clock's."""
    newest = checkpoint.newest(path / "states", print)
    assert newest is not None
    tensors, numbers = load_state(newest, TrainState({}, {})) if newest.is_dir() else checkpoint.load_tensors(newest)
    return tensors, {name: value for name, value in numbers.items() if name not in TIMES}


def logged(path: Path) -> list[dict[str, Any]]:
    """The run's log without the clock's numbers."""
    lines = read_lines(path / "log.jsonl")
    return [{name: value for name, value in line.items() if name not in TIMES} for line in lines]


def assert_same_tensors(one: Mapping[str, Tensor], other: Mapping[str, Tensor]) -> None:
    """Bit for bit."""
    assert one.keys() == other.keys()
    different = [name for name in one if not torch.equal(one[name], other[name])]
    assert not different, different[:5]


ROUNDING = 2e-5
"""Relative; three steps of 1e-4 in other directions would be far beyond."""


def assert_same_up_to_rounding(one: Path, other: Path, rounding: float = ROUNDING) -> None:
    """Two runs' newest states agree: gradients' running means element by element, weights and averages as a whole.

    Adam turns a gradient that is nothing but rounding, as that of a bias before a norm, into a step of full size: such
    vectors are compared by their gradients alone.
    """
    (tensors, numbers), (others, other_numbers) = saved(one), saved(other)
    assert numbers["images"] == other_numbers["images"]
    assert tensors.keys() == others.keys()
    for name, value in tensors.items():
        there = others[name]
        if name.endswith("exp_avg"):
            torch.testing.assert_close(value, there, atol=2e-6 + 1e-3 * value.abs().max().item(), rtol=0, msg=name)
        elif name.startswith("module.") and value.is_floating_point() and value.dim() != 1:
            distance = (value - there).norm() / value.norm().clamp_min(1e-3)
            assert distance < rounding, f"{name}: {distance:.2e}"


def assert_ends_alike_when_interrupted(root: Path, run: Callable[[Path], object], step: int) -> None:
    """Runs in `straight`, and in `broken`, where the process ends before it reads the batch of a step and the same
    call goes on: tensors, numbers and log of both are the same."""
    run(root / "straight")
    read = Loader._read

    def torn(self: Loader[Any], number: int) -> Any:
        if number == step:
            raise Crash
        return read(self, number)

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(Loader, "_read", torn)
        with pytest.raises(Crash):
            run(root / "broken")
    run(root / "broken")
    (one, numbers), (other, other_numbers) = saved(root / "straight"), saved(root / "broken")
    assert_same_tensors(one, other)
    assert numbers == other_numbers
    assert logged(root / "straight") == logged(root / "broken")
