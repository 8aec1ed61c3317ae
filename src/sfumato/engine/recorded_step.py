"""Training steps on a GPU as CUDA graphs: forward and backward pass recorded together, then replayed with one launch.

The networks of latent diffusion are small for a GPU: it computes a kernel faster than the host launches the next.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from sfumato.engine.graphs import Graphs, Play, RecordingCache, switched_on

MOST = 4
"""Number of recorded batch shapes; others are computed directly."""

Named = Mapping[str, Tensor]


@dataclass(frozen=True)
class _Recording:
    """Inputs, replay, and the gradients that a replay writes, None for a parameter without one."""

    inputs: Named
    play: Play
    gradients: Sequence[Tensor | None]


class RecordedGradients:
    """A function of named tensors whose backward pass leaves gradients in `parameters`, recorded by its inputs' shapes.

    Gradients are overwritten, not accumulated: the parameters must have none before a call.
    """

    def __init__(
        self,
        function: Callable[[Named], Tensor],
        parameters: Sequence[Tensor],
        record: Callable[[Play], Play] | None = None,
    ) -> None:
        """record: a call -> its play, by default a CUDA graph; the function's result must not require gradients."""
        self._function = function
        self._parameters = parameters
        self._record = Graphs() if record is None else record
        self._cache: RecordingCache[_Recording] = RecordingCache(MOST)

    def __len__(self) -> int:
        """The number of recordings."""
        return len(self._cache)

    def __call__(self, inputs: Named) -> Tensor:
        """The function's result, as a new tensor."""
        signature = tuple((name, tuple(t.shape), t.dtype, t.device) for name, t in inputs.items())
        recording = self._cache.get(signature, lambda: self._recorded(inputs))
        if recording is None:
            return self._recomputed(inputs)
        for name, own in recording.inputs.items():
            own.copy_(inputs[name])
        out = recording.play().clone()
        for parameter, gradient in zip(self._parameters, recording.gradients, strict=True):
            parameter.grad = gradient
        return out

    def _recorded(self, inputs: Named) -> _Recording:
        own = {name: torch.empty_like(t).copy_(t) for name, t in inputs.items()}
        play = self._record(lambda: self._recomputed(own))
        return _Recording(own, play, [parameter.grad for parameter in self._parameters])

    def _recomputed(self, inputs: Named) -> Tensor:
        """The function's result, with gradients of earlier calls or of a failed recording cleared."""
        for parameter in self._parameters:
            parameter.grad = None
        return self._function(inputs)


def recordable(device: torch.device) -> bool:
    """Whether steps on the device are recorded: on a GPU, unless recording is switched off."""
    return device.type == "cuda" and switched_on()
