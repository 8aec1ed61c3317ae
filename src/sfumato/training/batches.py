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
    """From the step that `state` counts on, behind the samples it has seen; pinned where a GPU takes them."""
    return Loader(
        source,
        train.batch,
        train.seed,
        state.step * train.accumulate,
        workers.rank,
        workers.world,
        train.workers,
        pin=workers.device.type == "cuda",
        position=state.images,
    )


def changed_batch(state: TrainState, step_images: int) -> str | None:
    """What to tell the user where the steps before saw another number of samples than those to come: None if not."""
    if state.images == state.step * step_images:
        return None
    before = f"{state.images / state.step:.1f}".removesuffix(".0")
    return (
        f"another number of processes: each step sees {step_images} images instead of {before}; the run goes on behind "
        f"the {state.images} that it has seen, but ends with other weights than with the same number"
    )
