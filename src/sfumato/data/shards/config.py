"""The configuration of shards."""

from typing import Literal

from pydantic import Field

from sfumato.data.images_config import ImagesConfig


class ShardsConfig(ImagesConfig):
    """Images in tar files as img2dataset and WebDataset write them, and their preprocessing to (3, H, W)."""

    kind: Literal["shards"] = "shards"
    path: str = Field(min_length=1)
    """Set by `--data`: a folder of tar files, or addresses such as `https://host/{000000..000009}.tar`."""
    together: int = Field(default=8, ge=1)
    """Shards whose images are shuffled together; their order is shuffled, too."""
    most_damaged: int | float = Field(default=0.1, ge=0)
    """Truncated or corrupt shards that are skipped, as a share (rounded up) or a number; more are an error."""
    keep_gib: float = Field(default=16.0, gt=0)
    """Shards from other machines are kept in the cache, up to this many GiB; the longest unused are removed."""
