"""Gradients recorded with plays that compute on the CPU: which calls are recorded, and that they are the plain ones."""

from collections.abc import Callable, Mapping
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import runs
from sfumato.engine.recorded_step import MOST, RecordedGradients, recordable
from sfumato.training import diffusion


class Tape:
    """Stands for a CUDA graph: a play writes into the memory that the recorded call left its results in."""

    def __init__(self, parameters: list[nn.Parameter]) -> None:
        self.parameters = parameters
        self.recorded, self.played = 0, 0

    def __call__(self, call: Callable[[], Tensor]) -> Callable[[], Tensor]:
        self.recorded += 1
        result = call()
        kept = [p.grad for p in self.parameters]

        def play() -> Tensor:
            self.played += 1
            again = call()
            for p, gradient in zip(self.parameters, kept, strict=True):
                if gradient is not None and p.grad is not None:
                    gradient.copy_(p.grad)
                p.grad = None  # a graph knows nothing of the attribute
            return result.copy_(again)

        return play


def layer_and_loss() -> tuple[nn.Linear, list[nn.Parameter], Callable[[Mapping[str, Tensor]], Tensor]]:
    torch.manual_seed(0)
    layer, unused = nn.Linear(3, 2), nn.Parameter(torch.ones(2))

    def loss(given: Mapping[str, Tensor]) -> Tensor:
        out: Tensor = (layer(given["x"]) * given["weight"]).square().mean()
        out.backward()
        return out.detach()

    return layer, [*layer.parameters(), unused], loss


def batch(rows: int, i: int) -> dict[str, Tensor]:
    g = torch.Generator().manual_seed(i)
    return {"x": torch.randn(rows, 3, generator=g), "weight": torch.rand(2, generator=g)}


def test_the_second_batch_of_a_shape_is_recorded_and_gradients_are_those_of_the_batch() -> None:
    layer, parameters, loss = layer_and_loss()
    tape = Tape(parameters)
    recorded = RecordedGradients(loss, parameters, tape)
    given = []
    for i in range(4):
        for rows in (5, 2):
            for p in parameters:
                p.grad = None
            loss(batch(rows, i))
            expected = [None if p.grad is None else p.grad.clone() for p in parameters]
            for p in parameters:
                p.grad = None
            out = recorded(batch(rows, i))
            for p, gradient in zip(parameters, expected, strict=True):
                if gradient is None:
                    assert p.grad is None
                else:
                    torch.testing.assert_close(p.grad, gradient, atol=0, rtol=0)
            given.append((out, (layer(batch(rows, i)["x"]) * batch(rows, i)["weight"]).square().mean()))
    assert (tape.recorded, tape.played, len(recorded)) == (2, 6, 2)
    for out, expected_loss in given:  # looked at last: no play may write over what was given before
        torch.testing.assert_close(out, expected_loss.detach())


def test_what_cannot_be_recorded_is_computed_as_it_comes() -> None:
    _, parameters, loss = layer_and_loss()
    tries = []

    def refuse(call: Callable[[], Tensor]) -> Callable[[], Tensor]:
        tries.append(call())  # a recording that fails at its end has left gradients behind
        raise RuntimeError("operation not permitted when stream is capturing")

    recorded = RecordedGradients(loss, parameters, refuse)
    for i in range(4):
        for p in parameters:
            p.grad = None
        loss(batch(2, i))
        expected = parameters[0].grad.clone()  # type: ignore[union-attr]
        for p in parameters:
            p.grad = None
        recorded(batch(2, i))
        torch.testing.assert_close(parameters[0].grad, expected, atol=0, rtol=0)
    assert (len(tries), len(recorded)) == (1, 0)


def test_no_more_than_some_shapes_are_recorded() -> None:
    _, parameters, loss = layer_and_loss()
    recorded = RecordedGradients(loss, parameters, Tape(parameters))
    for _ in range(2):
        for rows in range(1, MOST + 3):
            recorded(batch(rows, 0))
    assert len(recorded) == MOST


def test_only_a_gpu_is_recorded_and_not_where_it_is_switched_off(monkeypatch: pytest.MonkeyPatch) -> None:
    assert not recordable(torch.device("cpu"))
    assert recordable(torch.device("cuda"))
    monkeypatch.setenv("SFUMATO_GRAPHS", "0")
    assert not recordable(torch.device("cuda"))


WORDS = "kind: text, dim: 16, depth: 1, heads: 2, head_dim: 8, max_tokens: 8"
PARTS = f"conditioner={{kind: composite, parts: {{text: {{{WORDS}}}}}}}"
OBJECTIVES = {
    "text": ("train.condition_dropout=0.5",),
    "parts": (PARTS, "train.condition_dropout=0.3", "train.part_dropout={text: 0.4}"),
    "class": ("conditioner={kind: class, classes: 4, dim: 8}",),
    "none": ("conditioner={kind: none}",),
    "adaptive": (
        "objective={times: {kind: loss-history, bins: 3, memory: 1}, weighting: {kind: learned, features: 8}}",
    ),
    "muon": ("train.optimiser.method=muon",),
}


@pytest.mark.parametrize("name", OBJECTIVES)
def test_a_recorded_training_is_the_plain_one(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    overrides = ("train.steps=5", *OBJECTIVES[name])
    runs.train_second(tmp_path / "plain", runs.second_run(*overrides), tmp_path / "cache")
    tapes: list[Tape] = []

    class Learning(RecordedGradients):
        def __init__(self, function: Callable[..., Tensor], parameters: list[nn.Parameter]) -> None:
            tapes.append(Tape(parameters))
            super().__init__(function, parameters, tapes[-1])

    monkeypatch.setattr("sfumato.training.micro.RecordedGradients", Learning)
    monkeypatch.setattr(diffusion, "recordable", lambda device: True)
    runs.train_second(tmp_path / "recorded", runs.second_run(*overrides), tmp_path / "cache")
    assert [(tape.recorded, tape.played) for tape in tapes] == [(1, 4)]
    (plain, numbers), (recorded, others) = runs.saved(tmp_path / "plain"), runs.saved(tmp_path / "recorded")
    runs.assert_same_tensors(plain, recorded)
    assert numbers == others
