"""CUDA graphs: a call recorded once for each shape of its inputs, then replayed with a single launch.

At the sizes of latents a GPU computes a network's kernels faster than the host can launch them one by one. A recording
owns its inputs, into which those of every call are copied, so that it works for any values. SFUMATO_GRAPHS=0 switches
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
"""Default number of recorded signatures; calls of further ones are not recorded."""

R = TypeVar("R")
Inputs = Sequence[Tensor | None]
Function = Callable[..., Tensor]
Play = Callable[[], Tensor]
"""Recomputes the result from the recording's inputs; the next play overwrites it."""


@dataclass(frozen=True)
class Recording:
    """A recorded call of one signature: the inputs that it reads, and its replay."""

    inputs: Inputs
    play: Play

    def __call__(self, inputs: Inputs) -> Tensor:
        """The function's result, as a new tensor."""
        for own, value in zip(self.inputs, inputs, strict=True):
            if own is not None and value is not None:
                own.copy_(value)
        return self.play().clone()


class RecordingCache(Generic[R]):
    """Recordings by signature.

    A signature's first call is executed directly: it may be the only one, and lazy initialisation must happen before
    recording. The second is recorded. If the call cannot be captured, its signature is always executed directly, with a
    warning. Any other error is raised, also a lack of memory.
    """

    def __init__(self, most: int) -> None:
        """most: largest number of recorded signatures."""
        self._most = most
        self._recordings: dict[tuple[object, ...], R | None] = {}
        self._failed: set[tuple[object, ...]] = set()

    def __len__(self) -> int:
        """The number of recordings."""
        return sum(recording is not None for recording in self._recordings.values())

    def get(self, signature: tuple[object, ...], record: Callable[[], R]) -> R | None:
        """The recording to play; None where the call is to be executed directly."""
        if signature not in self._recordings:
            if len(self._recordings) < self._most:
                self._recordings[signature] = None
            return None
        if self._recordings[signature] is None and signature not in self._failed:
            try:
                self._recordings[signature] = record()
            except torch.OutOfMemoryError as error:
                raise torch.OutOfMemoryError(f"while a CUDA graph was recorded: {error}") from error
            except RuntimeError as error:
                if not cannot_be_captured(error):
                    raise
                self._failed.add(signature)
                warnings.warn(
                    f"a call is not recorded, since CUDA cannot capture it: {first_line(error)}", stacklevel=2
                )
        return self._recordings[signature]


def cannot_be_captured(error: RuntimeError) -> bool:
    """Whether an error means that CUDA cannot capture a call, such as one that waits for the device.

    CUDA's codes for it are cudaErrorStreamCapture…, 900 to 908; all their messages, and PyTorch's own, mention capture.
    """
    return "captur" in str(error).lower()


def first_line(error: RuntimeError) -> str:
    """The first line of an error's message, without the advice that follows."""
    return str(error).strip().partition("\n")[0]


class Recordings:
    """Recordings of one function, by signature: the inputs that are not None, their shapes, types and devices."""

    def __init__(self, record: Callable[[Play], Play] | None = None, most: int = MOST) -> None:
        """record: a call -> its play, by default a CUDA graph; most: largest number of recorded signatures."""
        self._record = Graphs() if record is None else record
        self._cache: RecordingCache[Recording] = RecordingCache(most)

    def __len__(self) -> int:
        """The number of recordings."""
        return len(self._cache)

    @torch.no_grad()
    def __call__(self, function: Function, inputs: Inputs) -> Tensor:
        """function(*inputs); the function must be the same in every call."""
        signature = tuple(None if t is None else (tuple(t.shape), t.dtype, t.device) for t in inputs)
        recording = self._cache.get(signature, lambda: self._recorded(function, inputs))
        return function(*inputs) if recording is None else recording(inputs)

    def _recorded(self, function: Function, inputs: Inputs) -> Recording:
        own = [None if value is None else torch.empty_like(value).copy_(value) for value in inputs]
        return Recording(own, self._record(lambda: function(*own)))


class Graphs:
    """Records calls as CUDA graphs that share their memory: they are replayed one at a time, and results are copied."""

    def __init__(self) -> None:
        self._pool: object = None

    def __call__(self, call: Play) -> Play:
        """Raises RuntimeError for a call that cannot be recorded, such as one that waits for the device."""
        self._pool = torch.cuda.graph_pool_handle() if self._pool is None else self._pool
        side_stream = torch.cuda.Stream()
        side_stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side_stream):
            call()  # libraries initialise lazily on a stream's first use
        torch.cuda.current_stream().wait_stream(side_stream)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=self._pool, capture_error_mode="thread_local"):  # type: ignore[arg-type]
            result = call()

        def play() -> Tensor:
            graph.replay()
            return result

        return play


def switched_on() -> bool:
    """Whether recording is enabled: not with SFUMATO_GRAPHS=0."""
    return os.environ.get("SFUMATO_GRAPHS", "1") != "0"


def recordable(inputs: Inputs) -> bool:
    """Whether a call can be recorded: on a GPU, outside of another recording, and without gradients."""
    tensors = [t for t in inputs if t is not None]
    return (
        all(t.device.type == "cuda" for t in tensors)
        and not (torch.is_grad_enabled() and any(t.requires_grad for t in tensors))
        and switched_on()
        and not torch.cuda.is_current_stream_capturing()
    )
