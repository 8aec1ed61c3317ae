"""What this machine reaches: arithmetic, memory, and whether the native kernels run."""

import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sfumato.engine import native
from sfumato.engine.packing import PackedConv2d
from sfumato.engine.precision import Precision, has_fast_bfloat16
from sfumato.estimate.measure import arithmetic_peak, seconds
from sfumato.report.machine import Machine, describe

ROUNDS = 8
"""The best of so many is taken: another program's work only slows."""
BYTES = 256 * 2**20
"""Copied to find the memory's bandwidth: beyond any cache."""


@dataclass(frozen=True)
class Speed:
    """Operations a second in one number format."""

    matrix: float
    """A large matrix product, as torch computes it."""
    convolution: float
    """3 x 3 over 256 channels at 32 x 32, in the form in which networks here draw images."""


@dataclass(frozen=True)
class Reach:
    """Of one device."""

    machine: Machine
    kernels: str
    speeds: dict[str, Speed]
    """By number format; bfloat16 where the device computes it natively."""
    bandwidth: float
    """Bytes a second, read and written, of a large copy."""
    share: float | None
    """Of one core's time, what this process had while it was measured, 1 at the most; None on a GPU."""

    @property
    def best(self) -> str:
        """The number format that `precision auto` takes."""
        return "bfloat16" if "bfloat16" in self.speeds else "float32"


def reach(device: torch.device) -> Reach:
    """Measures for a second or a few."""
    formats: tuple[Precision, ...] = ("float32", "bfloat16") if has_fast_bfloat16(device) else ("float32",)
    cpu_start, wall_start = time.process_time(), time.perf_counter()
    speeds: dict[str, Speed] = {
        name: Speed(arithmetic_peak(device, name), _convolution(device, name)) for name in formats
    }
    kernels = native.describe() if device.type == "cpu" else "native kernels: not used on a GPU"
    bandwidth = _bandwidth(device)
    share = min(1.0, (time.process_time() - cpu_start) / (time.perf_counter() - wall_start))
    return Reach(describe(device), kernels, speeds, bandwidth, share if device.type == "cpu" else None)


@torch.no_grad()
def _convolution(device: torch.device, precision: Precision) -> float:
    dtype = torch.bfloat16 if precision == "bfloat16" else torch.float32
    layer, batch = nn.Conv2d(256, 256, 3, padding=1), 64 if device.type == "cuda" else 4
    x = torch.randn(batch, 256, 32, 32, device=device, dtype=dtype).contiguous(memory_format=torch.channels_last)
    convolve = _convolver(layer, device, dtype)
    convolve(x)
    operations = 2 * x.numel() * 256 * 9
    return max(operations / seconds(lambda: convolve(x), device) for _ in range(ROUNDS))


def _convolver(layer: nn.Conv2d, device: torch.device, dtype: torch.dtype) -> Callable[[Tensor], Tensor]:
    if device.type == "cpu":
        packed = PackedConv2d.of(layer, dtype)
        packed.filters = False  # the definition's arithmetic: fewer products would exceed the processor
        return packed
    weight = layer.weight.to(device, dtype).contiguous(memory_format=torch.channels_last)
    return lambda x: F.conv2d(x, weight, padding=1)


def _bandwidth(device: torch.device) -> float:
    source = torch.ones(BYTES // 4, device=device)
    target = torch.empty_like(source)
    target.copy_(source)  # the first time also asks the system for the pages
    return max(2 * BYTES / seconds(lambda: target.copy_(source), device) for _ in range(ROUNDS))
