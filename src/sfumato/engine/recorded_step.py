"""Training steps on a GPU as CUDA graphs: forward and backward pass recorded together, then played with one launch.

The networks of latent diffusion are small for a GPU: it computes a kernel faster than the host launches the next.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from sfumato.engine.graphs import Graphs, Kept, Play, switched_on

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

    Gradients are set, not added to: the parameters must have none before a call.
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
        self._kept: Kept[_Recording] = Kept(MOST)

    def __len__(self) -> int:
        """How many recordings there are."""
        return len(self._kept)

    def __call__(self, given: Named) -> Tensor:
        """The function's result, a tensor of its own."""
        signature = tuple((name, tuple(t.shape), t.dtype, t.device) for name, t in given.items())
        recording = self._kept.get(signature, lambda: self._recorded(given))
        if recording is None:
            return self._anew(given)
        for name, own in recording.inputs.items():
            own.copy_(given[name])
        out = recording.play().clone()
        for parameter, gradient in zip(self._parameters, recording.gradients, strict=True):
            parameter.grad = gradient
        return out

    def _recorded(self, given: Named) -> _Recording:
        own = {name: torch.empty_like(t).copy_(t) for name, t in given.items()}
        play = self._record(lambda: self._anew(own))
        return _Recording(own, play, [parameter.grad for parameter in self._parameters])

    def _anew(self, given: Named) -> Tensor:
        """The function's result without what an earlier call, or a recording that failed, left in the gradients."""
        for parameter in self._parameters:
            parameter.grad = None
        return self._function(given)


def recordable(device: torch.device) -> bool:
    """Whether steps on the device are recorded: on a GPU, unless recording is switched off."""
    return device.type == "cuda" and switched_on()
