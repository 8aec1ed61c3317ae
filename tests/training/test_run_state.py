"""The state of a run is restored exactly, down to the order in memory that fused optimisers rely on."""

import pytest
import torch
from torch import Tensor, nn

from sfumato.training.optim import OptimiserConfig, build_optimiser
from sfumato.training.state import TrainState, _checked


def network(seed: int) -> nn.Module:
    torch.manual_seed(seed)
    layers = nn.Sequential(nn.Conv2d(3, 8, 3), nn.SiLU(), nn.Conv2d(8, 5, 3), nn.Flatten(), nn.Linear(5 * 4, 2))
    return layers.to(memory_format=torch.channels_last)  # type: ignore[call-overload]


def state_of(module: nn.Module) -> TrainState:
    return TrainState({"net": module}, {"net": build_optimiser(OptimiserConfig(), module)})


def train(state: TrainState, steps: range) -> None:
    module, optimiser = state.modules["net"], state.optimisers["net"]
    for step in steps:
        x = torch.randn(4, 3, 6, 6, generator=torch.Generator().manual_seed(step))
        module(x).square().mean().backward()
        optimiser.step()
        optimiser.zero_grad()


def test_training_goes_on_bit_for_bit_from_row_major_tensors() -> None:
    """A file knows no memory order; AdamW's fused kernel pairs weights and moments by address."""
    straight = state_of(network(0))
    train(straight, range(3))
    straight.step, straight.notes = 3, {"loss": 0.1}
    rows: dict[str, Tensor] = {}
    for name, value in straight.tensors().items():
        rows[name] = value.clone(memory_format=torch.contiguous_format)
    numbers = straight.numbers()

    resumed = state_of(network(1))
    resumed.load(rows, numbers)
    assert (resumed.step, resumed.notes) == (3, {"loss": 0.1})
    for state in (straight, resumed):
        train(state, range(3, 6))
    there = resumed.tensors()
    for name, value in straight.tensors().items():
        assert torch.equal(value, there[name]), name


def test_a_state_of_other_parts_is_refused() -> None:
    state = state_of(network(0))
    with pytest.raises(RuntimeError, match="Missing key"):
        state.load({}, {})


@pytest.mark.parametrize("counter", ["step", "images", "skipped", "skipped_in_a_row"])
def test_a_counter_that_no_run_reaches_is_refused(counter: str) -> None:
    with pytest.raises(ValueError, match="which no run writes"):
        _checked({counter: 10**30})
    assert _checked({counter: 10**12}) == {counter: 10**12}
