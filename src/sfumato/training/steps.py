"""What both loops count and check after a step."""

from sfumato.errors import UserError
from sfumato.training.state import TrainState


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
            f"the gradients were not finite in {max_skipped} steps in a row, up to step {state.step}; the last saved "
            "state is untouched: start again with a lower train.optimiser.learning_rate or train.precision=float32"
        )
