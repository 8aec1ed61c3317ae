"""The configurations of Parquet files and LMDB databases."""

from typing import Literal

from pydantic import Field

from sfumato.data.containers.config import ContainersConfig


class ParquetConfig(ContainersConfig):
    """Images in Parquet files, as Hugging Face datasets store them, and their preprocessing to (3, H, W)."""

    kind: Literal["parquet"] = "parquet"
    path: str
    """Set by `--data`: a folder of .parquet files, addresses, or `hub:OWNER/NAME`."""
    image_column: str = "image"
    """The column with images: bytes, or a structure of `bytes` and `path`."""
    together: int = Field(default=2, ge=1)
    """Number of row groups whose images are shuffled together; they are held in memory."""
    split: str | None = None
    """For a dataset of the hub: read only the files with this in their names, such as train or test."""


class LmdbConfig(ContainersConfig):
    """Images in LMDB databases as LSUN has them, and their preprocessing to (3, H, W)."""

    kind: Literal["lmdb"] = "lmdb"
    path: str
    """Set by `--data`: the folder of a database (with `data.mdb`), or a folder of such folders."""
