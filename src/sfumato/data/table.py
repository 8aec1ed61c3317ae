"""The kinds of data of configurations, and opening them."""

from collections.abc import Callable
from pathlib import Path
from typing import Annotated, TypeAlias

from pydantic import Field

from sfumato.data.dataset import Dataset, Progress
from sfumato.data.folder import FolderDataset
from sfumato.data.folder_config import FolderConfig
from sfumato.data.image_dataset import ImageDataset
from sfumato.data.pixels import BUDGET, keep_decoded
from sfumato.data.shards.addresses import shard_addresses
from sfumato.data.shards.config import ShardsConfig
from sfumato.data.shards.dataset import ShardDataset, root_of
from sfumato.data.toyworld.dataset import ToyWorldConfig

StoredConfig: TypeAlias = FolderConfig | ShardsConfig
"""Images that are stored somewhere, in contrast to the toy world's."""
DataConfig: TypeAlias = Annotated[FolderConfig | ShardsConfig | ToyWorldConfig, Field(discriminator="kind")]


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
    """The data set of a configuration; UserError if it cannot be used.

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
            return ShardDataset(config, scanning, cache)
        case FolderConfig():
            return FolderDataset(config, scanning, cache, hashing)


def files_root(config: StoredConfig) -> Path:
    """The folder in which lists of class names and folders of masks are looked for."""
    return root_of(shard_addresses(config.path)) if isinstance(config, ShardsConfig) else config.path
