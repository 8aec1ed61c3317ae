"""Interleaved timing: every round calls each candidate once, so that a busy moment of the machine hits them alike."""

import os
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from benchmarks.memory import added_peak


@dataclass(frozen=True)
class Timing:
    """Medians over the rounds; bytes at the peak; the difference to the first candidate's result over its largest."""

    cpu_seconds: float
    wall_seconds: float
    first_seconds: float
    """Of the first call: with it a compiler's work."""
    peak_memory: int | None
    """Added by a call to what was resident; of a candidate that is a process, all of the process."""
    difference: float


class Child:
    """A candidate that is a process of its own; it leaves its result where `result` finds it."""

    def __init__(self, arguments: list[str], environment: Mapping[str, str], result: Callable[[], Tensor]) -> None:
        self.arguments, self.environment, self.result = arguments, environment, result
        self.peak_memory: int | None = None

    def __call__(self) -> Tensor:
        """Runs it to its end. Raises RuntimeError where it fails."""
        silenced = [(os.POSIX_SPAWN_OPEN, 1, os.devnull, os.O_WRONLY, 0)]
        process = os.posix_spawnp(self.arguments[0], self.arguments, self.environment, file_actions=silenced)
        _, status, usage = os.wait4(process, 0)
        if os.waitstatus_to_exitcode(status) != 0:
            raise RuntimeError(f"failed: {' '.join(self.arguments)}")
        self.peak_memory = usage.ru_maxrss * 1024
        return self.result()


def interleave(candidates: Mapping[str, Callable[[], Tensor]], rounds: int) -> dict[str, Timing]:
    """Times each candidate `rounds` times after two calls to warm up; the first is the reference of the differences.

    The results compared are those of the second call: of training steps, losses after an update.
    """
    first = {name: _seconds(call)[1] for name, call in candidates.items()}
    outputs: dict[str, Tensor] = {}
    peaks: dict[str, int | None] = {}
    for name, call in candidates.items():
        peaks[name] = added_peak(lambda name=name, call=call: outputs.update({name: call().detach().float()}))  # type: ignore[misc]
        if isinstance(call, Child):
            peaks[name] = call.peak_memory
    reference = next(iter(outputs.values()))
    spent: dict[str, list[tuple[float, float]]] = {name: [] for name in candidates}
    for _ in range(rounds):
        for name, call in candidates.items():
            spent[name].append(_seconds(call))
    return {
        name: Timing(
            *(statistics.median(times) for times in zip(*spent[name], strict=True)),
            first_seconds=first[name],
            peak_memory=peaks[name],
            difference=((outputs[name] - reference).abs().max() / reference.abs().max()).item(),
        )
        for name in candidates
    }


def peak_flops(dtype: torch.dtype, rounds: int = 5) -> float:
    """Arithmetic per CPU second of a large convolution with packed weights: what this machine reaches at best."""
    from sfumato.engine.packing import PackedConv2d

    layer = PackedConv2d.of(torch.nn.Conv2d(256, 256, 3, padding=1), dtype)
    layer.filters = False  # the library's convolution: one with fewer products would exceed the processor
    x = torch.randn(4, 256, 32, 32).to(dtype).contiguous(memory_format=torch.channels_last)
    with torch.no_grad():
        seconds = interleave({"peak": lambda: layer(x)}, rounds)["peak"].cpu_seconds
    return 2 * x.numel() * 256 * 9 / seconds


def _seconds(call: Callable[[], object]) -> tuple[float, float]:
    """(CPU, wall) seconds of a call, processes that it waited for included."""
    cpu_start, wall_start = _cpu(), time.perf_counter()
    call()
    return _cpu() - cpu_start, time.perf_counter() - wall_start


def _cpu() -> float:
    children = os.times()
    return time.process_time() + children.children_user + children.children_system
