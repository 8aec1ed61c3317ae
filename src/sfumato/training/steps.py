"""After the gradients of a step: the optimizer step, counting, checking; and the progress of a run."""

import math
from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor, nn

from sfumato.counts import how_many
from sfumato.errors import UserError
from sfumato.training.averages import ema
from sfumato.training.optim import OptimiserConfig, clip_
from sfumato.training.state import TrainState


class Length(Protocol):
    """The length of a run: a number of steps, or of minutes of training."""

    @property
    def steps(self) -> int: ...

    @property
    def minutes(self) -> float | None: ...

    @property
    def step_limits(self) -> tuple[int, int] | None: ...


class Optimised(Protocol):
    """Gradient clipping and the decay of the average."""

    @property
    def optimiser(self) -> OptimiserConfig: ...

    @property
    def ema_decay(self) -> float: ...


def progress(length: Length, state: TrainState) -> float:
    """The share of the run that is over, in [0, 1]; 1 at its end."""
    if length.minutes is None:
        return min(1.0, state.step / length.steps)
    share = state.seconds / (60 * length.minutes)
    if length.step_limits is not None:
        fewest, most = length.step_limits
        share = min(max(share, state.step / most), state.step / fewest)
    return min(1.0, share)


def optimizer_step(
    optimiser: torch.optim.Optimizer,
    settings: Optimised,
    parameters: Sequence[Tensor],
    norm: float,
    network: nn.Module,
    shadow: nn.Module,
    state: TrainState,
) -> bool:
    """Clips, steps and updates the average if the gradients are finite; then clears the gradients.

    `norm` is that of the gradients before clipping; `state` counts the steps before this one. Returns whether it is
    finite.
    """
    finite = math.isfinite(norm)
    if finite:
        clip_(parameters, norm, settings.optimiser.clip_norm)
        optimiser.step()
        ema.update(shadow, network, ema.decay_at(state.step - state.skipped + 1, settings.ema_decay))
    optimiser.zero_grad(set_to_none=True)
    return finite


def count_step(state: TrainState, finite: bool, images: int, elapsed: float) -> None:
    """Counts a step; one with gradients that were not finite changed no weight and counts as skipped."""
    state.step += 1
    state.images += images
    state.seconds += elapsed
    state.skipped += not finite
    state.skipped_in_a_row = 0 if finite else state.skipped_in_a_row + 1


RUN_GOES_ON = (
    "add a lower train.optimiser.learning_rate or train.precision=float32 to the same command, which resumes from the "
    "last state"
)
MAX_SKIPPED_SHARE = 0.5
"""Of a run's steps: with more skipped, the result is not what was configured."""


def check_progress(state: TrainState, max_skipped: int, way_out: str = RUN_GOES_ON) -> None:
    """Raises UserError, which contains the way out, if too many steps had gradients that were not finite.

    Too many: `max_skipped` in a row, or more than half of all from 2 · `max_skipped` steps on.
    """
    if state.skipped_in_a_row >= max_skipped:
        raise UserError(
            f"the gradients were not finite in {how_many(max_skipped, 'step')} in a row, up to step {state.step}: "
            f"{way_out}"
        )
    if state.step >= 2 * max_skipped:
        _check_share(state, way_out)


def check_result(state: TrainState, way_out: str = RUN_GOES_ON) -> None:
    """As `check_progress`, at the end of a run of any length: no model is written if no step, or few, succeeded."""
    if state.step and state.step == state.skipped:
        raise UserError(
            f"no step of {state.step} succeeded, the gradients were not finite in any, so no model is written: "
            "lower the learning rate or the weights of the losses, use precision float32, and start again"
        )
    _check_share(state, way_out)


def _check_share(state: TrainState, way_out: str) -> None:
    if state.skipped > MAX_SKIPPED_SHARE * state.step:
        raise UserError(
            f"the gradients were not finite in {state.skipped} of {state.step} steps, more than half: {way_out}"
        )
