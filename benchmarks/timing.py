"""Interleaved timing: every round calls each candidate once, so that a busy moment of the machine hits them alike."""

import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Timing:
    """Medians over the rounds; the largest difference to the first candidate's result, over its largest value."""

    cpu_seconds: float
    wall_seconds: float
    difference: float


def interleave(candidates: Mapping[str, Callable[[], Tensor]], rounds: int) -> dict[str, Timing]:
    """Times each candidate `rounds` times after one warm-up call; the first is the reference of the differences."""
    outputs = {name: call().detach().float() for name, call in candidates.items()}
    reference = next(iter(outputs.values()))
    cpu: dict[str, list[float]] = {name: [] for name in candidates}
    wall: dict[str, list[float]] = {name: [] for name in candidates}
    for _ in range(rounds):
        for name, call in candidates.items():
            cpu_start, wall_start = time.process_time(), time.perf_counter()
            call()
            wall[name].append(time.perf_counter() - wall_start)
            cpu[name].append(time.process_time() - cpu_start)
    return {
        name: Timing(
            statistics.median(cpu[name]),
            statistics.median(wall[name]),
            ((outputs[name] - reference).abs().max() / reference.abs().max()).item(),
        )
        for name in candidates
    }


def peak_flops(dtype: torch.dtype, rounds: int = 5) -> float:
    """Arithmetic per CPU second of a large convolution with packed weights: what this machine reaches at best."""
    from sfumato.engine.packing import PackedConv2d

    layer = PackedConv2d.of(torch.nn.Conv2d(256, 256, 3, padding=1), dtype)
    x = torch.randn(4, 256, 32, 32).to(dtype).contiguous(memory_format=torch.channels_last)
    with torch.no_grad():
        seconds = interleave({"peak": lambda: layer(x)}, rounds)["peak"].cpu_seconds
    return 2 * x.numel() * 256 * 9 / seconds
