"""The configuration that all containers of images have in common."""

from pydantic import Field

from sfumato.data.images_config import ImagesConfig


class ContainersConfig(ImagesConfig):
    """Images inside larger files, and their preprocessing to (3, H, W)."""

    path: str = Field(min_length=1)
    together: int = Field(default=8, ge=1)
    """Parts (shards, groups of rows) whose images are shuffled together; the order of parts is shuffled, too."""
    most_damaged: int | float = Field(default=0.1, ge=0)
    """Truncated or corrupt files that are skipped, as a share (rounded up) or a number; more are an error."""
    keep_gib: float = Field(default=16.0, gt=0)
    """Files of other machines are kept in the cache, up to this many GiB; the longest unused are removed."""
