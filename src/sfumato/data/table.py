"""The kinds of data of configurations, and opening them."""

from collections.abc import Callable
from pathlib import Path
from typing import Annotated, TypeAlias

from pydantic import Field

from sfumato.data.containers.addresses import addresses_of
from sfumato.data.containers.dataset import open_containers, root_of
from sfumato.data.dataset import Dataset, Progress
from sfumato.data.folder import FolderDataset
from sfumato.data.folder_config import FolderConfig
from sfumato.data.image_dataset import ImageDataset
from sfumato.data.pixels import BUDGET, keep_decoded
from sfumato.data.shards.config import ShardsConfig
from sfumato.data.shards.form import ENDING, SHARDS
from sfumato.data.tables.config import LmdbConfig, ParquetConfig
from sfumato.data.tables.lmdb import DATABASES, database_folders
from sfumato.data.tables.parquet import parquet_addresses, parquet_form
from sfumato.data.toyworld.dataset import ToyWorldConfig

StoredConfig: TypeAlias = FolderConfig | ShardsConfig | ParquetConfig | LmdbConfig
"""Images that are stored somewhere, in contrast to the toy world's."""
DataConfig: TypeAlias = Annotated[
    FolderConfig | ShardsConfig | ParquetConfig | LmdbConfig | ToyWorldConfig, Field(discriminator="kind")
]


def open_dataset(
    config: DataConfig,
    cache: Path | None = None,
    budget: int = BUDGET,
    scanning: Progress | None = None,
    hashing: Progress | None = None,
    decoding: Progress | None = None,
    workers: int = 2,
    log: Callable[[str], None] | None = None,
) -> Dataset:
    """The dataset of a configuration; UserError if it cannot be used.

    With `cache` the hashes of a folder's files are kept there, and its decoded images if they take at most `budget`
    bytes (see `keep_decoded`). `scanning`, `hashing` and `decoding` are called with the progress of the passes over a
    folder, `log` with messages for the user.
    """
    if isinstance(config, ToyWorldConfig):
        return config.build()
    images = open_images(config, cache, scanning, hashing)
    return images if cache is None else keep_decoded(images, cache, budget, decoding, workers, log)


def open_images(
    config: StoredConfig,
    cache: Path | None = None,
    scanning: Progress | None = None,
    hashing: Progress | None = None,
) -> ImageDataset:
    """The stored images of a configuration, each decoded when it is read; otherwise as `open_dataset`."""
    match config:
        case ShardsConfig():
            return open_containers(SHARDS, _addresses(config), config, scanning, cache)
        case ParquetConfig():
            return open_containers(parquet_form(config), _addresses(config), config, scanning, cache)
        case LmdbConfig():
            return open_containers(DATABASES, _addresses(config), config, scanning, cache)
        case FolderConfig():
            return FolderDataset(config, scanning, cache, hashing)


def files_root(config: StoredConfig) -> Path:
    """The folder in which lists of class names and folders of masks are looked for."""
    return config.path if isinstance(config, FolderConfig) else root_of(_addresses(config))


def _addresses(config: ShardsConfig | ParquetConfig | LmdbConfig) -> list[str]:
    match config:
        case ShardsConfig():
            return addresses_of(config.path, ENDING)
        case ParquetConfig():
            return parquet_addresses(config)
        case LmdbConfig():
            return database_folders(config.path)
