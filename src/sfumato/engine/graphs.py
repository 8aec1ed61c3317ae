"""CUDA graphs: a call recorded once for each shape of its inputs, then played with a single launch.

At the sizes of latents a GPU computes a network's kernels faster than the host can launch them one by one. A recording
has inputs of its own, which every call is copied into, so that it is good for any values. SFUMATO_GRAPHS=0 switches
recording off.
"""

import os
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

import torch
from torch import Tensor

MOST = 8
"""Signatures that are recorded, as a rule; calls of further ones stay as they are."""

R = TypeVar("R")
ConditioningMetadata = Sequence[Tensor | None]
Function = Callable[..., Tensor]
Play = Callable[[], Tensor]
"""Computes a result anew from what the recording's inputs hold; the next play overwrites it."""


@dataclass(frozen=True)
class Recording:
    """A call of one signature: the inputs it reads, and how it is played."""

    inputs: ConditioningMetadata
    play: Play

    def __call__(self, inputs: ConditioningMetadata) -> Tensor:
        """As the function's, a tensor of its own."""
        for own, given in zip(self.inputs, inputs, strict=True):
            if own is not None and given is not None:
                own.copy_(given)
        return self.play().clone()


class Kept(Generic[R]):
    """What is recorded, by signature.

    A signature's first call is made as it is: it may be the only one, and what is set up on first use must be so before
    recording. The second is recorded. Where the call cannot be captured, its signature stays as it is for good, with a
    warning. Any other error is the caller's, a lack of memory too.
    """

    def __init__(self, most: int) -> None:
        """most: signatures that are recorded."""
        self._most = most
        self._found: dict[tuple[object, ...], R | None] = {}
        self._failed: set[tuple[object, ...]] = set()

    def __len__(self) -> int:
        """How many recordings there are."""
        return sum(recording is not None for recording in self._found.values())

    def get(self, signature: tuple[object, ...], record: Callable[[], R]) -> R | None:
        """The recording to play; None where the call is made as it is."""
        if signature not in self._found:
            if len(self._found) < self._most:
                self._found[signature] = None
            return None
        if self._found[signature] is None and signature not in self._failed:
            try:
                self._found[signature] = record()
            except torch.OutOfMemoryError as error:
                raise torch.OutOfMemoryError(f"while a CUDA graph was recorded: {error}") from error
            except RuntimeError as error:
                if not cannot_be_captured(error):
                    raise
                self._failed.add(signature)
                warnings.warn(f"a call stays as it is, CUDA cannot capture it: {first_line(error)}", stacklevel=2)
        return self._found[signature]


def cannot_be_captured(error: RuntimeError) -> bool:
    """Whether an error says that CUDA refuses to capture a call, such as one that waits for the device.

    CUDA's codes for it are cudaErrorStreamCapture…, 900 to 908; all their texts, and PyTorch's own, speak of capture.
    """
    return "captur" in str(error).lower()


def first_line(error: RuntimeError) -> str:
    """Of an error's text, without the advice that follows."""
    return str(error).strip().partition("\n")[0]


class Recordings:
    """Of one function, by signature: which inputs there are, their shapes, types and devices."""

    def __init__(self, record: Callable[[Play], Play] | None = None, most: int = MOST) -> None:
        """record: a call -> its play, by default a CUDA graph; most: signatures that are recorded."""
        self._record = Graphs() if record is None else record
        self._kept: Kept[Recording] = Kept(most)

    def __len__(self) -> int:
        """How many there are."""
        return len(self._kept)

    @torch.no_grad()
    def __call__(self, function: Function, inputs: ConditioningMetadata) -> Tensor:
        """function(*inputs); the function must be the same at every call."""
        signature = tuple(None if t is None else (tuple(t.shape), t.dtype, t.device) for t in inputs)
        recording = self._kept.get(signature, lambda: self._recorded(function, inputs))
        return function(*inputs) if recording is None else recording(inputs)

    def _recorded(self, function: Function, inputs: ConditioningMetadata) -> Recording:
        own = [None if given is None else torch.empty_like(given).copy_(given) for given in inputs]
        return Recording(own, self._record(lambda: function(*own)))


class Graphs:
    """Records calls as CUDA graphs that share their memory: they are played one at a time, and results are copied."""

    def __init__(self) -> None:
        self._pool: object = None

    def __call__(self, call: Play) -> Play:
        """Raises RuntimeError for what cannot be recorded, such as a call that waits for the device."""
        self._pool = torch.cuda.graph_pool_handle() if self._pool is None else self._pool
        beside = torch.cuda.Stream()
        beside.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(beside):
            call()  # libraries choose and set up what they need on a stream's first use
        torch.cuda.current_stream().wait_stream(beside)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=self._pool, capture_error_mode="thread_local"):  # type: ignore[arg-type]
            result = call()

        def play() -> Tensor:
            graph.replay()
            return result

        return play


def switched_on() -> bool:
    """Whether anything is recorded: not with SFUMATO_GRAPHS=0."""
    return os.environ.get("SFUMATO_GRAPHS", "1") != "0"


def wanted(inputs: ConditioningMetadata) -> bool:
    """Whether a call can be recorded: on a GPU, by nobody else already, and no gradients are asked for."""
    given = [t for t in inputs if t is not None]
    return (
        all(t.device.type == "cuda" for t in given)
        and not (torch.is_grad_enabled() and any(t.requires_grad for t in given))
        and switched_on()
        and not torch.cuda.is_current_stream_capturing()
    )
