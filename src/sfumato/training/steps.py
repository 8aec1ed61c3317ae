"""What the loops count and check after a step, and how far a run is."""

from typing import Protocol

from sfumato.errors import UserError
from sfumato.training.state import TrainState


class Length(Protocol):
    """How long a run is: so many steps, or so many minutes of training."""

    @property
    def steps(self) -> int: ...

    @property
    def minutes(self) -> float | None: ...


def share_done(length: Length, state: TrainState) -> float:
    """The share of the run that is over, in [0, 1]; 1 where it has ended."""
    if length.minutes is None:
        return min(1.0, state.step / length.steps)
    return min(1.0, state.seconds / (60 * length.minutes))


def count_step(state: TrainState, finite: bool, images: int, elapsed: float) -> None:
    """Moves the counters past a step; one whose gradients were not finite changed no weight and counts as skipped."""
    state.step += 1
    state.images += images
    state.seconds += elapsed
    state.skipped += not finite
    state.skipped_in_a_row = 0 if finite else state.skipped_in_a_row + 1


def check_progress(state: TrainState, max_skipped: int) -> None:
    """Raises UserError after `max_skipped` steps in a row without finite gradients."""
    if state.skipped_in_a_row >= max_skipped:
        raise UserError(
            f"the gradients were not finite in {max_skipped} steps in a row, up to step {state.step}: give the same "
            "command a lower train.optimiser.learning_rate or train.precision=float32, it goes on from the last state"
        )
