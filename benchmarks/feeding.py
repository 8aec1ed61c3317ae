"""What feeds the training: a folder or shards of images as batches; latents from the cache, or encoded in the loop."""

import tempfile
from collections import deque
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from benchmarks.networks import autoencoder_pair
from benchmarks.workloads import BEST, DEFAULT, Scope, Workload, channels_last
from sfumato.autoencoder.model import AutoencoderConfig
from sfumato.data.folder import FolderDataset
from sfumato.data.folder_config import FolderConfig
from sfumato.data.image_dataset import ImageDataset
from sfumato.data.loader import Loader, to_unit
from sfumato.data.order import batch_indices
from sfumato.data.shards.config import ShardsConfig
from sfumato.data.shards.writing import write_shards
from sfumato.data.table import open_images
from sfumato.model import LatentDiffusion, ModelConfig, build
from sfumato.training.encode import cached_latents

SEED, WORKERS = 0, 2
STAYS: list[tempfile.TemporaryDirectory[str]] = []
"""The images' folders, deleted when the benchmark ends."""


class Photographs(Dataset[Tensor]):
    """What diffusers' training scripts do with a folder: decode, resize the short side, crop the centre, scale."""

    def __init__(self, names: list[Path], size: int) -> None:
        self.names, self.size = names, size

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, row: int) -> Tensor:
        image = Image.open(self.names[row]).convert("RGB")
        scale = self.size / min(image.size)
        W, H = (round(side * scale) for side in image.size)
        image = image.resize((W, H), Image.Resampling.BICUBIC)
        left, top = (W - self.size) // 2, (H - self.size) // 2
        image = image.crop((left, top, left + self.size, top + self.size))
        return to_unit(torch.from_numpy(np.asarray(image).copy()).permute(2, 0, 1))


def folder_batches(count: int, size: int, batch: int, batches: int, given: tuple[int, int] = (768, 1024)) -> Workload:
    """Batches (batch, 3, size, size) from JPEG files of `given` (H, W); the result is the last batch."""
    folder = _photographs(count, given)
    source = FolderDataset(FolderConfig(path=folder, size=size, resize_filter="bicubic"))
    names = [folder / source.name(row) for row in range(len(source))]
    theirs = Photographs(names, size)
    rows = [batch_indices(SEED, step, batch, count) for step in range(batches)]
    patient = DataLoader(theirs, batch_sampler=rows, num_workers=WORKERS, persistent_workers=True)

    def ours() -> Tensor:
        with Loader(source, batch, SEED, workers=WORKERS) as data:
            return _last(next(data).images for _ in range(batches))

    candidates: dict[str, Callable[[], Tensor]] = {
        "PIL in torch's DataLoader": lambda: _last(iter(patient)),
        "sfumato folder": ours,
    }
    return Workload(candidates, batch * batches, "images", clock="wall")


def epochs(count: int, size: int, batch: int, given: tuple[int, int] = (768, 1024)) -> Workload:
    """One epoch of JPEG files of `given` (H, W), from a folder and from shards; the result is the mean image.

    Both read in their own order, so `batch` has to divide `count`.
    """
    folder = _photographs(count, given)
    images = FolderDataset(FolderConfig(path=folder, size=size))
    shards = folder.parent / "shards"
    write_shards(images, shards, per_shard=max(1, count // 4))
    packed = open_images(ShardsConfig(path=str(shards), size=size))

    def epoch(source: ImageDataset) -> Callable[[], Tensor]:
        def mean() -> Tensor:
            total = torch.zeros(3, size, size, dtype=torch.float64)
            with Loader(source, batch, SEED, workers=WORKERS) as data:
                for _ in range(count // batch):
                    total += next(data).images.double().sum(0)
            return total / count

        return mean

    return Workload({"sfumato folder": epoch(images), "sfumato shards": epoch(packed)}, count, "images", clock="wall")


def latent_batches(
    config: AutoencoderConfig, count: int, size: int, batch: int, batches: int, scope: Scope
) -> Workload:
    """Latents (batch, C, size / f, size / f): encoded in the loop as diffusers' scripts do, or read from the cache."""
    folder = _photographs(count, (size, size))
    source = FolderDataset(FolderConfig(path=folder, size=size))
    ours, theirs = autoencoder_pair(config, size)
    model: LatentDiffusion = build(ModelConfig(autoencoder=config, image_size=(size, size)))
    model.autoencoder.load_state_dict(ours.state_dict())
    model.autoencoder.eval().requires_grad_(False)
    latents = cached_latents(model, source, folder.parent / "cache", precision="float32")

    def encoded(network: object, dtype: torch.dtype) -> Callable[[], Tensor]:
        @torch.no_grad()
        def encode(images: Tensor) -> Tensor:
            return network.encode(images.to(dtype)).latent_dist.mean.float()  # type: ignore[attr-defined,no-any-return]

        def batches_of() -> Tensor:
            with Loader(source, batch, SEED, workers=WORKERS) as data:
                return _last(encode(next(data).images) for _ in range(batches))

        return batches_of

    def cached() -> Tensor:
        with Loader(latents, batch, SEED, workers=1) as data:
            return _last(model.autoencoder.latent_from_moments(next(data).moments) for _ in range(batches))

    candidates = {f"{DEFAULT} in the loop": encoded(theirs, torch.float32)}
    if scope.half:
        candidates[f"{BEST} bf16 in the loop"] = encoded(channels_last(theirs, torch.bfloat16), torch.bfloat16)
    candidates["sfumato cache"] = cached
    return Workload(candidates, batch * batches, "latents", clock="wall")


def _last(batches: Iterator[Tensor]) -> Tensor:
    return deque(batches, maxlen=1).pop()


def _photographs(count: int, size: tuple[int, int]) -> Path:
    """JPEG files of smooth noise, about as large as photographs are."""
    place = tempfile.TemporaryDirectory(prefix="sfumato-bench-")
    STAYS.append(place)
    folder = Path(place.name) / "images"
    folder.mkdir()
    random = np.random.default_rng(0)
    H, W = size
    for number in range(count):
        coarse = random.integers(0, 256, (max(1, H // 16), max(1, W // 16), 3), dtype=np.uint8)
        image = Image.fromarray(coarse).resize((W, H), Image.Resampling.BICUBIC)
        noisy = np.asarray(image).astype(np.int16) + random.integers(-8, 9, (H, W, 3), dtype=np.int16)
        Image.fromarray(noisy.clip(0, 255).astype(np.uint8)).save(folder / f"{number:04d}.jpg", quality=90)
    return folder
