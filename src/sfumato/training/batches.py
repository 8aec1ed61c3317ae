"""The batches of a run: read ahead from where it stands, each process its own rows."""

from typing import Protocol

from sfumato.data.dataset import Item, Source
from sfumato.data.loader import Loader
from sfumato.training.state import TrainState
from sfumato.training.workers import Workers


class Reading(Protocol):
    """What the settings of a loop say of its batches."""

    @property
    def batch(self) -> int: ...

    @property
    def accumulate(self) -> int: ...

    @property
    def seed(self) -> int: ...

    @property
    def workers(self) -> int: ...


def open_batches(source: Source[Item], train: Reading, state: TrainState, workers: Workers) -> Loader[Item]:
    """From the step that `state` counts on; pinned where a GPU takes them."""
    return Loader(
        source,
        train.batch,
        train.seed,
        state.step * train.accumulate,
        workers.rank,
        workers.world,
        train.workers,
        pin=workers.device.type == "cuda",
    )
