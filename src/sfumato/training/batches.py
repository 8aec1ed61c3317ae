"""The batches of a run, read ahead from its current position; each process reads its own rows."""

from typing import Protocol

from sfumato.data.buckets import small_buckets
from sfumato.data.dataset import Item, Source, buckets_of
from sfumato.data.loader import Loader
from sfumato.training.state import TrainState
from sfumato.training.workers import Workers


class Reading(Protocol):
    """The settings of a loop that concern its batches."""

    @property
    def batch(self) -> int: ...

    @property
    def accumulate(self) -> int: ...

    @property
    def seed(self) -> int: ...

    @property
    def workers(self) -> int: ...


def open_batches(source: Source[Item], train: Reading, state: TrainState, workers: Workers) -> Loader[Item]:
    """Batches from the step in `state` on, after the samples it has used; pinned if training is on a GPU."""
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
        same_size=train.batch * train.accumulate * workers.world,
    )


def small_groups(source: object, step_images: int) -> str | None:
    """A sentence for the user if some of the sizes of images have fewer images than a step; else None."""
    buckets = buckets_of(source)
    return None if buckets is None else small_buckets(buckets, step_images)


def changed_batch(state: TrainState, step_images: int) -> str | None:
    """A sentence for the user if earlier steps used another number of samples than the next ones; else None."""
    if state.images == state.step * step_images:
        return None
    before = f"{state.images / state.step:.1f}".removesuffix(".0")
    return (
        f"another number of processes: each step uses {step_images} images instead of {before}; the run continues "
        f"after the {state.images} it has used, but its final weights differ from those with the same number"
    )
