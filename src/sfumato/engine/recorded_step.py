"""Training steps on a GPU as CUDA graphs: forward and backward pass recorded together, then played with one launch.

The networks of latent diffusion are small for a GPU: it computes a kernel faster than the host launches the next.
"""

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from sfumato.engine.graphs import Graphs, Play

MOST = 4
"""Shapes of batches that are recorded; others are computed as they come."""

Named = Mapping[str, Tensor]


@dataclass(frozen=True)
class _Recording:
    """Its inputs, its play, and the gradients that a play writes, None where a parameter gets none."""

    inputs: Named
    play: Play
    gradients: Sequence[Tensor | None]


class RecordedGradients:
    """A function of named tensors whose backward pass leaves gradients in `parameters`, recorded by its inputs' shapes.

    The first batch of a shape is computed as it is, so that what is set up on first use is; the second is recorded, the
    others are played. Where recording fails the function is called as before. Gradients are set, not added to: the
    parameters must have none before a call.
    """

    def __init__(
        self,
        function: Callable[[Named], Tensor],
        parameters: Sequence[Tensor],
        record: Callable[[Play], Play] | None = None,
    ) -> None:
        """record: a call -> its play, by default a CUDA graph; the function's result must need no gradients."""
        self._function = function
        self._parameters = parameters
        self._record = Graphs() if record is None else record
        self._found: dict[tuple[object, ...], _Recording | None] = {}
        self._failed: set[tuple[object, ...]] = set()

    def __len__(self) -> int:
        """How many recordings there are."""
        return sum(recording is not None for recording in self._found.values())

    def __call__(self, given: Named) -> Tensor:
        """The function's result, a tensor of its own."""
        signature = tuple((name, tuple(t.shape), t.dtype, t.device) for name, t in given.items())
        if signature in self._failed or (signature not in self._found and len(self._found) == MOST):
            return self._function(given)
        if signature not in self._found:
            self._found[signature] = None
            return self._function(given)
        recording = self._found[signature]
        if recording is None:
            try:
                recording = self._found[signature] = self._recorded(given)
            except RuntimeError:
                self._failed.add(signature)
                self._drop_gradients()
                return self._function(given)
        for name, own in recording.inputs.items():
            own.copy_(given[name])
        out = recording.play().clone()
        for parameter, gradient in zip(self._parameters, recording.gradients, strict=True):
            parameter.grad = gradient
        return out

    def _recorded(self, given: Named) -> _Recording:
        own = {name: torch.empty_like(t).copy_(t) for name, t in given.items()}

        def call() -> Tensor:
            self._drop_gradients()  # so that the backward pass writes them anew, in memory of the recording
            return self._function(own)

        play = self._record(call)
        return _Recording(own, play, [parameter.grad for parameter in self._parameters])

    def _drop_gradients(self) -> None:
        for parameter in self._parameters:
            parameter.grad = None


def recordable(device: torch.device) -> bool:
    """Whether steps on the device are recorded: on a GPU, unless SFUMATO_GRAPHS=0."""
    return device.type == "cuda" and os.environ.get("SFUMATO_GRAPHS", "1") != "0"
