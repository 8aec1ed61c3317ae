"""The configuration that all containers of images have in common."""

from pydantic import Field

from sfumato.data.images_config import ImagesConfig


class ContainersConfig(ImagesConfig):
    """Images inside larger files, and their preprocessing to (3, H, W)."""

    path: str = Field(min_length=1)
    together: int = Field(default=8, ge=1)
    """Number of shards whose images are shuffled together; the order of the shards is shuffled as well."""
    most_damaged: int | float = Field(default=0.1, ge=0)
    """How many truncated or corrupt files to skip, as a fraction (rounded up) or a number; more are an error."""
    keep_gib: float = Field(default=16.0, gt=0)
    """Size limit in GiB for cached copies of remote files; the least recently used are removed first."""
