"""Recordings with plays that compute on the CPU: which calls are recorded, what they read, what they give."""

import copy
import warnings
from collections.abc import Callable

import pytest
import torch
from engine_cases import CASES
from torch import Tensor

from sfumato.engine import graphs, inference
from sfumato.engine.graphs import MOST, Recordings
from sfumato.engine.inference import PackedUNet, RecordedUNet, for_inference


class Tape:
    """Stands for a CUDA graph: replays a call into the memory of its first result."""

    def __init__(self) -> None:
        self.recorded, self.played = 0, 0

    def __call__(self, call: Callable[[], Tensor]) -> Callable[[], Tensor]:
        self.recorded += 1
        result = call()

        def play() -> Tensor:
            self.played += 1
            return result.copy_(call())

        return play


def test_the_second_call_of_a_shape_is_recorded_and_later_ones_are_played() -> None:
    tape, calls = Tape(), []

    def function(x: Tensor, y: Tensor | None) -> Tensor:
        calls.append(len(x))
        return x * 2 if y is None else x * 2 + y

    recordings = Recordings(tape)
    numbers = [torch.full((2, 3), float(i)) for i in range(4)]
    given = [recordings(function, (x, None)) for x in numbers]
    assert (tape.recorded, tape.played, len(recordings)) == (1, 3, 1)
    for x, out in zip(numbers, given, strict=True):  # looked at last: no play may write over what was given before
        torch.testing.assert_close(out, 2 * x, atol=0, rtol=0)
    shapes = [(3, 3), (2, 3)]
    for i in range(3):
        for shape in shapes:
            x, y = torch.full(shape, float(i)), torch.full(shape, 10.0 * i)
            torch.testing.assert_close(recordings(function, (x, y)), 2 * x + y)
    assert (tape.recorded, len(recordings)) == (3, 3)


def test_views_and_expanded_inputs_are_read_by_their_values() -> None:
    recordings = Recordings(Tape())
    for i in range(3):
        x = torch.arange(6.0).reshape(2, 3).t() + i
        y = torch.full((1, 2), float(i)).expand(3, 2)
        torch.testing.assert_close(recordings(torch.add, (x, y)), x + y)


def test_a_call_that_cannot_be_recorded_is_made_as_it_is() -> None:
    tries = []

    def refuse(call: Callable[[], Tensor]) -> Callable[[], Tensor]:
        tries.append(call)
        raise RuntimeError("operation not permitted when stream is capturing")

    recordings = Recordings(refuse)
    with warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always")
        for i in range(4):
            assert recordings(torch.neg, (torch.full((2,), float(i)),)).tolist() == [-i, -i]
    assert len(tries) == 1
    assert [str(one.message) for one in warned] == [
        "a call is not recorded, since CUDA cannot capture it: operation not permitted when stream is capturing"
    ]
    assert len(recordings) == 0


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (
            torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB"),
            "while a CUDA graph was recorded.*2 GiB",
        ),
        (RuntimeError("mat1 and mat2 shapes cannot be multiplied"), "shapes cannot be multiplied"),
    ],
)
def test_other_errors_than_those_of_capturing_are_the_callers(error: RuntimeError, message: str) -> None:
    def fail(call: Callable[[], Tensor]) -> Callable[[], Tensor]:
        raise error

    recordings = Recordings(fail)
    recordings(torch.neg, (torch.ones(2),))
    for _ in range(2):  # not for good: the next call tries again
        with pytest.raises(type(error), match=message):
            recordings(torch.neg, (torch.ones(2),))


def test_only_so_many_shapes_are_recorded() -> None:
    recordings = Recordings(Tape())
    for _ in range(3):
        for n in range(1, MOST + 3):
            assert len(recordings(torch.neg, (torch.ones(n),))) == n
    assert len(recordings) == MOST


def test_a_call_on_the_cpu_or_with_gradients_is_not_recordable() -> None:
    assert not graphs.recordable((torch.ones(1), None))


@pytest.mark.parametrize("case", ["unet", "unet-text"])
def test_a_recorded_network_is_the_packed_one(case: str, monkeypatch: pytest.MonkeyPatch) -> None:
    tape = Tape()
    monkeypatch.setattr(inference, "recordable", lambda inputs: not torch.is_grad_enabled())
    monkeypatch.setattr(inference, "Recordings", lambda: Recordings(tape))
    network, run = CASES[case]()
    fast = for_inference(network, torch.float32)
    assert type(fast) is PackedUNet
    with torch.no_grad():
        expected = run(fast)
    fast.__class__ = RecordedUNet
    with torch.no_grad():
        for _ in range(3):
            torch.testing.assert_close(run(fast), expected, atol=1e-6, rtol=1e-5)
        assert (tape.recorded, tape.played) == (1, 2)
        torch.testing.assert_close(run(copy.deepcopy(fast)), expected, atol=1e-6, rtol=1e-5)
    assert tape.played == 2, "a copy has recordings of its own"
