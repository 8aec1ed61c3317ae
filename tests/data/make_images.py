"""Small images for the tests of datasets."""

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image


def noise(seed: int, height: int = 8, width: int = 8) -> Image.Image:
    """An RGB image of random pixels."""
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8))


def save(root: Path, names: Iterable[str], height: int = 8, width: int = 8) -> None:
    """Saves one random image under each name, making folders as needed."""
    for seed, name in enumerate(names):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        noise(seed, height, width).save(root / name)


def metadata(folder: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    (folder / "metadata.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def truncated(path: Path, keep: float = 0.5) -> None:
    """A PNG whose header is whole and whose pixels are cut off."""
    noise(99, 32, 32).save(path)
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * keep)])
