"""Whole processes: from `python` to an image on the disk, cold. The same weights and the same noise in both."""

import os
import sys
import tempfile
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor

from benchmarks.networks import W1, filled
from benchmarks.timing import Child
from benchmarks.workloads import DEFAULT, Scope, Workload
from sfumato.autoencoder.model import AutoencoderConfig
from sfumato.denoiser.unet import UNetConfig
from sfumato.diffusion.schedule import ScaledLinearConfig
from sfumato.interop.diffusers_export import export_diffusers
from sfumato.model import DiffusionConfig, ModelConfig, build
from sfumato.rng import SampleNoise

STAYS: list[tempfile.TemporaryDirectory[str]] = []
"""The models' folders, deleted when the benchmark ends."""


def sampling(steps: int, scope: Scope) -> Workload:
    """`sfumato sample` of one image, unconditional with kl-f8 by DDIM, against a script with diffusers' parts."""
    place = tempfile.TemporaryDirectory(prefix="sfumato-bench-")
    STAYS.append(place)
    root = Path(place.name)
    prepare(root, W1, AutoencoderConfig(), 256)
    candidates = {DEFAULT: _theirs(root, steps, "float32")}
    if scope.half:
        candidates["diffusers bf16"] = _theirs(root, steps, "bfloat16")
        candidates["sfumato bf16"] = _ours(root, steps, "bfloat16")
    candidates["sfumato float32"] = _ours(root, steps, "float32")
    return Workload(dict(candidates), 1, "images", clock="wall")


def prepare(root: Path, denoiser: UNetConfig, autoencoder: AutoencoderConfig, size: int) -> None:
    """Writes the same model as `model` and as `diffusers`, and beside them the noise of our seed 0."""
    second = DiffusionConfig(denoiser=denoiser, schedule=ScaledLinearConfig())
    model = build(ModelConfig(autoencoder=autoencoder, image_size=(size, size), diffusion=second))
    assert model.second is not None
    filled(model.autoencoder)
    filled(model.second.denoiser)
    model.save(root / "model")
    export_diffusers(root / "model", root / "diffusers")
    save_file({"noise": SampleNoise([0])((1, *model.latent_shape)).float()}, root / "noise.safetensors")


def sample_arguments(root: Path, out: Path, steps: int, dtype: str) -> list[str]:
    """Of `sfumato`, for the image that `diffusers_image` generates."""
    model = ["sample", str(root / "model"), "--out", str(out), "-n", "1", "--device", "cpu", "--precision", dtype]
    return [*model, "--steps", str(steps), "--sampler", "ddim", "--grid", "trailing"]


def _environment() -> dict[str, str]:
    here = Path(__file__).parents[1]
    paths = os.pathsep.join([str(here / "src"), str(here), os.environ.get("PYTHONPATH", "")])
    return {**os.environ, "PYTHONPATH": paths, "OMP_NUM_THREADS": str(torch.get_num_threads())}


def _theirs(root: Path, steps: int, dtype: str) -> Child:
    target = root / f"diffusers-{dtype}.png"
    arguments = ["-m", "benchmarks.diffusers_image", str(root), str(target), str(steps), dtype]
    return Child([sys.executable, *arguments], _environment(), lambda: read(target))


def _ours(root: Path, steps: int, dtype: str) -> Child:
    out = root / f"sfumato-{dtype}"
    arguments = ["-m", "sfumato", *sample_arguments(root, out, steps, dtype)]
    return Child([sys.executable, *arguments], _environment(), lambda: read(_last(out)))


def _last(out: Path) -> Path:
    return max(out.glob("*.png"), key=lambda path: path.stat().st_mtime_ns)


def read(path: Path) -> Tensor:
    """(H, W, 3), 0 to 255."""
    return torch.from_numpy(np.array(Image.open(path).convert("RGB"))).float()
