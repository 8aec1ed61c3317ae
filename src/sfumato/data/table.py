"""The kinds of data of configurations, and opening them."""

from collections.abc import Callable
from pathlib import Path
from typing import Annotated, TypeAlias

from pydantic import Field

from sfumato.data.dataset import Dataset, Progress
from sfumato.data.folder import FolderDataset
from sfumato.data.folder_config import FolderConfig
from sfumato.data.pixels import BUDGET, keep_decoded
from sfumato.data.toyworld.dataset import ToyWorldConfig

DataConfig: TypeAlias = Annotated[FolderConfig | ToyWorldConfig, Field(discriminator="kind")]


def open_dataset(
    config: FolderConfig | ToyWorldConfig,
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
    folder = FolderDataset(config, scanning, cache, hashing)
    return folder if cache is None else keep_decoded(folder, cache, budget, decoding, workers, log)
