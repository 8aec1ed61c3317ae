"""The configuration of shards."""

from typing import Literal

from sfumato.data.containers.config import ContainersConfig


class ShardsConfig(ContainersConfig):
    """Images in tar files as img2dataset and WebDataset write them, and their preprocessing to (3, H, W)."""

    kind: Literal["shards"] = "shards"
    path: str
    """Set by `--data`: a folder of tar files, or addresses such as `https://host/{000000..000009}.tar`."""
