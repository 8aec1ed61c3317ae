"""Small folders and shards for the tests."""

import io
import json
import tarfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from data.make_images import noise
from sfumato.data.folder import FolderDataset
from sfumato.data.folder_config import FolderConfig
from sfumato.data.image_dataset import ImageDataset
from sfumato.data.shards.config import ShardsConfig
from sfumato.data.shards.writing import write_shards
from sfumato.data.table import open_images


def png(seed: int, height: int = 8, width: int = 8) -> bytes:
    """A PNG of random pixels."""
    stream = io.BytesIO()
    noise(seed, height, width).save(stream, "PNG")
    return stream.getvalue()


def tar(path: Path, members: Iterable[tuple[str, bytes]], form: int = tarfile.USTAR_FORMAT) -> Path:
    """A tar file with these members."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w", format=form) as out:
        for name, content in members:
            about = tarfile.TarInfo(name)
            about.size = len(content)
            out.addfile(about, io.BytesIO(content))
    return path


def samples(
    first: int, count: int, values: Mapping[str, Any] | None = None, height: int = 8
) -> list[tuple[str, bytes]]:
    """Members as img2dataset writes them: image, caption and table of each key."""
    found: list[tuple[str, bytes]] = []
    for number in range(first, first + count):
        key = f"{number:09d}"
        about = {"url": f"https://host/{number}", "caption": f"caption {number}", "status": "success", **(values or {})}
        found += [(f"{key}.json", json.dumps(about).encode()), (f"{key}.png", png(number, height))]
        found.append((f"{key}.txt", f"caption {number}".encode()))
    return found


def shards(root: Path, sizes: Iterable[int]) -> Path:
    """Shards with this many images each."""
    first = 0
    for number, count in enumerate(sizes):
        tar(root / f"{number:05d}.tar", samples(first, count))
        first += count
    return root


def opened(place: Path | str, cache: Path | None = None, **options: Any) -> ImageDataset:
    config = ShardsConfig.model_validate({"path": str(place), "size": 8, **options})
    return open_images(config, cache)


def folder(root: Path, **options: Any) -> FolderDataset:
    return FolderDataset(FolderConfig.model_validate({"path": root, "size": 8, **options}))


def sharded(root: Path, out: Path, per_shard: int = 4, **options: Any) -> ImageDataset:
    """The folder, written as shards."""
    out.mkdir(parents=True, exist_ok=True)
    write_shards(folder(root, **options), out, per_shard)
    return opened(out)


def pixels(one: Any) -> bytes:
    """The bytes of an example's image."""
    return np.ascontiguousarray(one.image.numpy()).tobytes()
